//! Dates as templates write them. UTC, because a prompt should not depend on where the server stands.

use std::time::Duration;

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const SECONDS_PER_DAY: u64 = 86_400;

/// `format` with C's conversions for a wall time since the Unix epoch. A conversion that is not known stays as written.
pub(super) fn format_utc(format: &str, wall: Duration) -> String {
    let time = Civil::from_unix_seconds(wall.as_secs());
    let mut text = String::with_capacity(format.len() + 16);
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        match chars.next() {
            Some('-') => match chars.next() {
                Some(conversion) => text.push_str(&time.unpadded(conversion)),
                None => text.push_str("%-"),
            },
            Some(conversion) => text.push_str(&time.convert(conversion)),
            None => text.push('%'),
        }
    }
    text
}

struct Civil {
    year: u64,
    /// 1 to 12.
    month: u64,
    /// 1 to 31.
    day: u64,
    /// 1 to 366.
    day_of_year: u64,
    /// 0 is Monday.
    weekday: usize,
    second_of_day: u64,
}

impl Civil {
    fn from_unix_seconds(seconds: u64) -> Self {
        const THURSDAY: u64 = 3;
        let days = seconds / SECONDS_PER_DAY;
        let (mut year, mut left) = (1970, days);
        // Whole 400-year cycles first, so that no time, however far, makes the loop long.
        year += left / 146_097 * 400;
        left %= 146_097;
        while left >= days_in_year(year) {
            left -= days_in_year(year);
            year += 1;
        }
        let day_of_year = left + 1;
        let mut month = 1;
        while left >= days_in_month(year, month) {
            left -= days_in_month(year, month);
            month += 1;
        }
        let weekday = ((days + THURSDAY) % 7) as usize;
        Self { year, month, day: left + 1, day_of_year, weekday, second_of_day: seconds % SECONDS_PER_DAY }
    }

    fn convert(&self, conversion: char) -> String {
        let (hour, minute, second) = (self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60);
        let hour_of_12 = (hour + 11) % 12 + 1;
        let weekday = DAYS[self.weekday];
        let month = MONTHS[(self.month - 1) as usize];
        match conversion {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'e' => format!("{:2}", self.day),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{hour:02}"),
            'I' => format!("{hour_of_12:02}"),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{hour:02}:{minute:02}:{second:02}"),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        }
    }

    fn unpadded(&self, conversion: char) -> String {
        let padded = self.convert(conversion);
        let bare = padded.trim_start_matches(['0', ' ']);
        if bare.is_empty() { "0".to_owned() } else { bare.to_owned() }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u64) -> u64 {
    365 + u64::from(is_leap(year))
}

fn days_in_month(year: u64, month: u64) -> u64 {
    match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_templates_ask() {
        // 2024-02-29 13:05:09 UTC, a Thursday.
        let wall = Duration::from_secs(1_709_211_909);
        assert_eq!(format_utc("%d %b %Y", wall), "29 Feb 2024");
        assert_eq!(format_utc("%A, %B %-d, %Y %I:%M:%S %p %j", wall), "Thursday, February 29, 2024 01:05:09 PM 060");
        assert_eq!(format_utc("%F %T %a 100%% %Q %", wall), "2024-02-29 13:05:09 Thu 100% %Q %");
    }

    #[test]
    fn the_first_and_a_far_day_are_right() {
        assert_eq!(format_utc("%F %A %H", Duration::ZERO), "1970-01-01 Thursday 00");
        assert_eq!(format_utc("%F", Duration::from_secs(951_782_400)), "2000-02-29");
        assert_eq!(format_utc("%F", Duration::from_secs(4_102_444_800)), "2100-01-01");
    }
}

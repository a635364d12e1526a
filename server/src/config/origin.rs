use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// A web origin as browsers send it: `https://app.example`, `http://localhost:3000`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = |why: &str| Err(format!("`{text}` is not an origin: {why}"));
        if text == "*" {
            return refuse("list the pages that may call this server, each as `https://app.example`");
        }
        let Some(host) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
            return refuse("it begins with https:// or http://");
        };
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._:[]".contains(c);
        if host.is_empty() || !host.chars().all(fits) {
            return refuse("after the scheme comes a host in small letters, and perhaps a port, without a path");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Origin {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_would_send() {
        for right in ["https://app.example", "http://localhost:3000", "http://[::1]:8080"] {
            assert_eq!(right.parse::<Origin>().expect(right).to_string(), right);
        }
        for wrong in ["*", "", "app.example", "https://", "https://app.example/", "https://App.example", "https://a b"]
        {
            wrong.parse::<Origin>().expect_err(wrong);
        }
    }
}

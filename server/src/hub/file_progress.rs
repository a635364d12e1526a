//! How the transfer of one file shows.

use std::io::{Write, stderr};

use hf_hub::api::Progress;
use indicatif::ProgressBar;

use super::ProgressOutput;

/// Parts of a file after which a plain line is written.
const LINES_PER_FILE: u64 = 10;
/// Files below this are over before anyone could read about them.
const MIN_SHOWN_BYTES: u64 = 1 << 20;

/// Follows one file.
pub(super) struct FileProgress {
    display: Display,
}

enum Display {
    Bar(ProgressBar),
    Lines { file: String, size: u64, done: u64, lines: u64 },
    Silent,
}

impl FileProgress {
    pub(super) fn new(output: ProgressOutput) -> Self {
        let display = match output {
            ProgressOutput::Bar => Display::Bar(ProgressBar::new(0)),
            ProgressOutput::Lines => Display::Lines { file: String::new(), size: 0, done: 0, lines: 0 },
            ProgressOutput::Silent => Display::Silent,
        };
        Self { display }
    }
}

impl Progress for FileProgress {
    fn init(&mut self, size: usize, filename: &str) {
        match &mut self.display {
            Display::Bar(bar) => Progress::init(bar, size, filename),
            display @ Display::Lines { .. } => {
                *display = Display::Lines { file: filename.to_owned(), size: size as u64, done: 0, lines: 0 };
            }
            Display::Silent => {}
        }
    }

    fn update(&mut self, bytes: usize) {
        match &mut self.display {
            Display::Bar(bar) => Progress::update(bar, bytes),
            Display::Lines { file, size, done, lines } => {
                *done += bytes as u64;
                let due = (*done * LINES_PER_FILE).checked_div(*size).unwrap_or(0);
                if due > *lines && *size >= MIN_SHOWN_BYTES {
                    *lines = due;
                    // A closed standard error must not end a download.
                    let _ = writeln!(stderr(), "{file}: {} of {} MiB", *done >> 20, *size >> 20);
                }
            }
            Display::Silent => {}
        }
    }

    fn finish(&mut self) {
        if let Display::Bar(bar) = &mut self.display {
            Progress::finish(bar);
        }
    }
}

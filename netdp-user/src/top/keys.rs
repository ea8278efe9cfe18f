//! Choices that the user has made by keys.

use super::Options;
use super::view::Sort;
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// The tabs, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tab {
    /// Pods.
    Pods,
    /// Destinations.
    Destinations,
    /// Prefixes of the policy.
    Prefixes,
    /// Reasons of drops.
    Drops,
    /// Uplinks.
    Uplinks,
}

impl Tab {
    /// All of them; the number of a tab's key is its place, from 1.
    pub(super) const ALL: [Self; 5] = [
        Self::Pods,
        Self::Destinations,
        Self::Prefixes,
        Self::Drops,
        Self::Uplinks,
    ];

    /// Returns the title.
    pub(super) const fn title(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Destinations => "destinations",
            Self::Prefixes => "prefixes",
            Self::Drops => "drops",
            Self::Uplinks => "uplinks",
        }
    }

    /// Returns the title for a narrow screen, where all of them have to fit into 40 columns.
    pub(super) const fn short_title(self) -> &'static str {
        match self {
            Self::Destinations => "dests",
            Self::Prefixes => "rules",
            other => other.title(),
        }
    }
}

/// The keys and their meanings, for the help.
pub(super) const HELP: [(&str, &str); 9] = [
    ("1 … 5, Tab", "another table"),
    ("↑ ↓ PgUp PgDn", "scroll"),
    ("← →", "scroll columns, where not all fit"),
    ("s", "sort by the next column"),
    ("/", "show only rows with these words; Esc ends it"),
    ("p, Space", "pause, go on"),
    ("c", "time per packet in the programs; measuring costs some"),
    ("?", "this help"),
    ("q, Ctrl-C", "quit"),
];

/// The state of the screen.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    /// The open tab.
    pub tab: Tab,
    /// The column by which pods and destinations are sorted.
    pub sort: Sort,
    /// Rows that are shown contain this.
    pub filter: String,
    /// True while the filter is being typed.
    pub is_typing: bool,
    /// True while the help is shown.
    pub has_help: bool,
    /// The first row that is shown.
    pub first_row: usize,
    /// The first column that is shown after the name.
    pub first_column: usize,
    mode: Mode,
    run_time: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Live,
    Paused,
    Over,
}

/// Rows of a page.
const PAGE: usize = 10;

impl Keys {
    /// Begins with the options of the command line.
    pub(super) fn new(options: &Options) -> Self {
        Self {
            tab: Tab::ALL.get(options.tab).copied().unwrap_or(Tab::Pods),
            sort: options.sort,
            filter: String::new(),
            is_typing: false,
            has_help: false,
            first_row: 0,
            first_column: 0,
            mode: Mode::Live,
            run_time: false,
        }
    }

    /// Reports whether the screen stands still.
    pub(super) fn is_paused(&self) -> bool {
        self.mode == Mode::Paused
    }

    /// Reports whether the user has quit.
    pub(super) fn is_over(&self) -> bool {
        self.mode == Mode::Over
    }

    /// Reports whether run times are wanted.
    pub(super) const fn shows_run_time(&self) -> bool {
        self.run_time
    }

    /// Handles a key.
    pub(super) fn press(&mut self, key: KeyEvent) {
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        if ctrl && key.code == KeyCode::Char('c') {
            self.mode = Mode::Over;
        } else if self.is_typing {
            self.type_filter(key.code);
        } else if !ctrl {
            self.command(key.code);
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.is_typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => return,
        }
        self.first_row = 0;
    }

    fn command(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char('q') => self.mode = Mode::Over,
            KeyCode::Esc if self.has_help => self.has_help = false,
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Char('?' | 'h') => self.has_help = !self.has_help,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('c') => self.run_time = !self.run_time,
            KeyCode::Char('/') => self.is_typing = true,
            KeyCode::Char('p' | ' ') => {
                self.mode = match self.mode {
                    Mode::Paused => Mode::Live,
                    _ => Mode::Paused,
                };
            }
            KeyCode::Char(digit @ '1'..='9') => {
                let at = digit as usize - '1' as usize;
                if let Some(tab) = Tab::ALL.get(at) {
                    self.open(*tab);
                }
            }
            KeyCode::Tab | KeyCode::BackTab => {
                let at = Tab::ALL.iter().position(|tab| *tab == self.tab);
                let step = if code == KeyCode::Tab {
                    1
                } else {
                    Tab::ALL.len() - 1
                };
                let next = (at.unwrap_or(0) + step) % Tab::ALL.len();
                self.open(Tab::ALL.get(next).copied().unwrap_or(self.tab));
            }
            KeyCode::Up => self.first_row = self.first_row.saturating_sub(1),
            KeyCode::Down => self.first_row += 1,
            KeyCode::PageUp => self.first_row = self.first_row.saturating_sub(PAGE),
            KeyCode::PageDown => self.first_row += PAGE,
            KeyCode::Home => self.first_row = 0,
            KeyCode::Left => self.first_column = self.first_column.saturating_sub(1),
            KeyCode::Right => self.first_column += 1,
            _ => {}
        }
    }

    fn open(&mut self, tab: Tab) {
        self.tab = tab;
        self.first_row = 0;
        self.first_column = 0;
    }
}

//! Table of clients, results and the source addresses that servers saw.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use std::net::IpAddr;

/// The table of a scene.
pub struct Seen(Table);

impl Seen {
    pub fn new() -> Self {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_header([
            "",
            "a pod's client",
            "result",
            "source the server saw",
            "why",
        ]);
        Self(table)
    }

    /// Adds a row.
    pub fn row(&mut self, when: &str, client: &str, result: &str, source: IpAddr, why: &str) {
        self.0
            .add_row([when, client, result, &source.to_string(), why]);
    }

    pub fn print(&self) {
        println!("{}", self.0);
    }
}

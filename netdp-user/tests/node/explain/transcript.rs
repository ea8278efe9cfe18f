//! Sections of docs/troubleshoot.md.

use super::World;
use anyhow::{Result, ensure};

/// A report with its transcript.
pub struct Section {
    title: &'static str,
    symptom: &'static str,
    command: String,
    /// The output of the command.
    pub output: String,
    remedy: &'static str,
}

impl Section {
    /// Explains on `world`, and checks the first line.
    pub fn of(
        world: &World,
        title: &'static str,
        symptom: &'static str,
        arguments: &[&str],
        first_line: &str,
    ) -> Result<Self> {
        let output = world.explain(arguments)?;
        let path = world.config.path().display().to_string();
        let output = normalised(&output, &path);
        let told = output.lines().next().unwrap_or_default();
        ensure!(
            told == first_line,
            "{title}: {told:?}, not {first_line:?} in\n{output}"
        );
        Ok(Self {
            title,
            symptom,
            command: format!("netdp explain {}", arguments.join(" ")),
            output,
            remedy: "",
        })
    }

    pub fn solved_by(mut self, remedy: &'static str) -> Self {
        self.remedy = remedy;
        self
    }

    pub fn text(&self) -> String {
        let Self {
            title,
            symptom,
            command,
            output,
            remedy,
        } = self;
        format!("\n## {title}\n\n{symptom}\n\n```text\n$ {command}\n{output}```\n\n{remedy}\n")
    }
}

/// Replaces the directory of the configuration, whose length differs from run to run, by the usual one, and
/// puts the last column of the table where it then belongs.
fn normalised(output: &str, path: &str) -> String {
    const LAST: &str = "WHY";
    let usual = |text: &str| text.replace(path, "/etc/config");
    let is_row = |line: &&str| line.starts_with(' ');
    let head = output.lines().find(|line| line.trim_end().ends_with(LAST));
    let column = head.map_or(0, |line| line.chars().count() - LAST.len());
    let split = |line: &str| {
        let before: String = line.chars().take(column).collect();
        let last: String = line.chars().skip(column).collect();
        (usual(before.trim_end()), usual(&last))
    };
    let rows = output.lines().filter(is_row).map(split);
    let width = rows.map(|(before, _)| before.chars().count()).max();
    let width = width.unwrap_or_default() + 2;
    let lines = output.lines().map(|line| {
        if !is_row(&line) {
            return usual(line) + "\n";
        }
        let (before, last) = split(line);
        let blanks = " ".repeat(width - before.chars().count());
        format!("{before}{blanks}{last}").trim_end().to_owned() + "\n"
    });
    lines.collect()
}

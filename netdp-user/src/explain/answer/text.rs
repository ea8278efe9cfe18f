//! The answers as text.

use super::model::{Answer, Answers, Outcome};
use crate::cli::output::table;
use crate::codes::Code;
use crate::terminal;
use anyhow::Result;
use std::collections::BTreeSet;
use std::fmt::Write as _;

impl Answers {
    /// Formats all answers: first lines first, those that differ from the others at the top.
    ///
    /// # Errors
    /// Returns an error if formatting fails.
    pub(crate) fn text(&self) -> Result<String> {
        let mut out = String::new();
        let mut answers: Vec<&Answer> = self.answers.iter().collect();
        let common = |answer: &Answer| {
            let same = |it: &&Answer| it.kind() == answer.kind();
            self.answers.iter().filter(same).count()
        };
        answers.sort_by_key(|answer| common(answer));
        let has_other_pods = answers.iter().any(|it| it.any_pod) && answers.len() > 1;
        for answer in &answers {
            let whose = match has_other_pods && !answer.any_pod {
                true => format!("from {}: ", answer.pod.as_ref().unwrap_or(&answer.from)),
                false => String::new(),
            };
            let line = format!("{whose}{}", answer.first_line());
            writeln!(out, "{}", terminal::line(&line))?;
        }
        let services: BTreeSet<_> = answers
            .iter()
            .filter_map(|it| it.service.as_ref())
            .collect();
        for line in services {
            writeln!(out, "{}", terminal::line(line))?;
        }
        if !self.agent_running {
            writeln!(
                out,
                "no agent runs: this is what the programs do without one"
            )?;
        }
        for reason in &self.config_rejected {
            let code = Code::Rejected;
            let reason = terminal::line(reason);
            writeln!(
                out,
                "the newest configuration was rejected, this is by the one before it: {reason}  {code}"
            )?;
        }
        for answer in answers {
            writeln!(out)?;
            if self.answers.len() > 1 {
                writeln!(out, "to         {}", answer.to)?;
            }
            answer.describe(&mut out)?;
        }
        Ok(out)
    }
}

impl Answer {
    /// Returns the headline with the codes.
    pub(crate) fn first_line(&self) -> String {
        let codes = self.codes.iter().map(|code| format!(" {code}"));
        let codes: String = codes.collect();
        format!(
            "{}{}{codes}",
            self.headline,
            if codes.is_empty() { "" } else { " " }
        )
    }

    /// Returns what makes it alike to other answers.
    const fn kind(&self) -> (Outcome, bool) {
        (self.outcome, self.is_certain)
    }

    fn describe(&self, out: &mut String) -> Result<()> {
        let mut from = self.from.clone();
        if let Some(pod) = &self.pod {
            from = format!("{pod}  {from}");
        }
        if self.any_pod {
            from = format!("any pod, here {from}");
        }
        if let Some(came_by) = &self.came_by {
            from = format!("{from}  ({came_by})");
        }
        writeln!(
            out,
            "from       {}, {}",
            terminal::line(&from),
            self.protocol
        )?;
        if !self.steps.is_empty() {
            let mut rows = table(&["STEP", "ANSWER", "WHY"]);
            for step in &self.steps {
                rows.add_row([step.step, &step.answer, &step.why]);
                for detail in &step.details {
                    let what = format!("  {:<8} {}", detail.label, detail.what);
                    rows.add_row(["", &what, &detail.why]);
                }
            }
            for line in rows.to_string().lines() {
                writeln!(out, "{}", line.trim_end())?;
            }
        }
        for note in &self.notes {
            writeln!(out, "note       {}", terminal::line(note))?;
        }
        if !self.remedies.is_empty() {
            writeln!(out)?;
        }
        for remedy in &self.remedies {
            writeln!(out, "{}", terminal::line(remedy))?;
        }
        for code in &self.codes {
            writeln!(
                out,
                "{code}: {}; `netdp codes {code}` says more",
                code.text()
            )?;
        }
        Ok(())
    }
}

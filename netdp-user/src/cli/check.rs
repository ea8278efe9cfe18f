//! `netdp config check`: validates a configuration, shows its policy, and reports findings to its
//! author.

use super::args::Output;
use super::output;
use super::policy::Policy;
use crate::config::{self, AutoKinds, Config, Diagnostic, Document, Format, MAX_DOCUMENT_BYTES};
use crate::sources::file;
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Path that denotes standard input.
const STDIN: &str = "-";

/// Maximum size of standard input, in bytes: a list of objects holds many documents.
const MAX_INPUT_BYTES: u64 = 64 << 20;

#[derive(Debug, Args)]
pub(super) struct Check {
    /// File, directory of files, or - for standard input; may hold ConfigMaps and lists of them.
    /// Without any, --targets or the defaults are checked.
    #[arg(value_name = "FILE")]
    paths: Vec<PathBuf>,
    #[command(flatten)]
    inputs: Inputs,
    /// Treat warnings as errors.
    #[arg(long)]
    strict: bool,
    /// Output format.
    #[arg(long, short, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Flags that affect the meaning of files that a command reads.
#[derive(Debug, Args)]
pub(super) struct Inputs {
    #[command(flatten)]
    pub(super) policy: Policy,
    /// Format of standard input unless it is a ConfigMap.
    #[arg(long, value_enum, default_value_t = InputFormat::MasqAgent)]
    format: InputFormat,
}

/// [`Format`] on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum InputFormat {
    /// ip-masq-agent's configuration.
    MasqAgent,
    /// k8s-custom-iptables' nat.rules.
    NatRules,
}

/// Report of the check.
#[derive(Debug, Default, Serialize)]
struct CheckReport {
    /// True if the configuration may come into force.
    valid: bool,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Differences in ip-masq-agent's treatment of it.
    differences: Vec<Diagnostic>,
    /// Objects of manifests that were read, and those that were left out.
    notes: Vec<Diagnostic>,
    /// Sources of the documents.
    documents: Vec<String>,
    policy: Option<EffectivePolicy>,
}

#[derive(Debug, Serialize)]
struct EffectivePolicy {
    hash: String,
    rules: Vec<RuleRow>,
    /// Action for destinations outside all rules.
    others: String,
    ipv6: bool,
    resync_interval_seconds: f64,
    masq_link_local: bool,
    masq_link_local_ipv6: bool,
    /// Kinds of the cluster's networks that agents bypass besides.
    #[serde(skip_serializing_if = "AutoKinds::is_empty")]
    auto_non_masquerade: AutoKinds,
}

#[derive(Debug, Serialize)]
struct RuleRow {
    prefix: String,
    action: String,
    /// Every origin of the rule, in order.
    origins: Vec<String>,
}

impl Check {
    pub(super) fn run(self) -> Result<()> {
        let report = self.report()?;
        let text = match self.output {
            Output::Json => serde_json::to_string_pretty(&report)? + "\n",
            Output::Text => report.text(),
        };
        output::write_out(&text, self.output == Output::Json)?;
        let (errors, warnings) = (report.errors.len(), report.warnings.len());
        if errors > 0 {
            bail!(
                "invalid configuration: {}",
                plural(errors, "error", "errors")
            );
        }
        if self.strict && warnings > 0 {
            bail!(
                "{}; --strict treats warnings as errors",
                plural(warnings, "warning", "warnings")
            );
        }
        Ok(())
    }

    fn report(&self) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let (documents, errors) = self.inputs.read(&self.paths)?;
        report.errors.extend(errors);
        report.documents = documents.iter().map(|doc| doc.name.clone()).collect();
        report.documents.dedup();
        let options = self.inputs.policy.options();
        match config::load_for_cluster(&documents, &options, &self.inputs.policy.cluster_cidrs()) {
            Err(rejected) => report.errors.extend(rejected.errors),
            Ok(loaded) if report.errors.is_empty() => {
                report.valid = true;
                report.warnings = loaded.warnings;
                report.notes = loaded.notes;
                report.differences = config::differences(&documents);
                report.policy = Some(effective(&loaded.config, options.enable_ipv6));
            }
            Ok(_) => {}
        }
        Ok(report)
    }
}

impl Inputs {
    /// Reads files, directories and standard input, and what `--targets` stands for. Returns the
    /// documents, and errors in what could not be read as any.
    ///
    /// # Errors
    /// Returns an error if a file does not exist, or standard input can't be read.
    pub(super) fn read(&self, paths: &[PathBuf]) -> Result<(Vec<Document>, Vec<Diagnostic>)> {
        let (mut documents, mut found) = (Vec::new(), Vec::new());
        for path in paths {
            let read = if path == Path::new(STDIN) {
                self.stdin()?
            } else if file::missing(std::slice::from_ref(path)).is_empty() {
                file::read(std::slice::from_ref(path)).map_err(|rejected| rejected.errors)
            } else {
                let hint = file::suggest(path).map_or_else(String::new, |hint| format!("; {hint}"));
                bail!("{} does not exist{hint}", path.display());
            };
            match read {
                Ok(read) => documents.extend(read),
                Err(errors) => found.extend(errors),
            }
        }
        documents.extend(self.policy.targets());
        Ok((documents, found))
    }

    /// Reads standard input as one document.
    fn stdin(&self) -> Result<Result<Vec<Document>, Vec<Diagnostic>>> {
        let mut bytes = Vec::new();
        let input = std::io::stdin().lock();
        input
            .take(MAX_INPUT_BYTES + 1)
            .read_to_end(&mut bytes)
            .context("reading standard input")?;
        if bytes.len() as u64 > MAX_INPUT_BYTES {
            bail!("standard input is larger than 64 MiB");
        }
        let Ok(text) = String::from_utf8(bytes) else {
            bail!("standard input is not UTF-8");
        };
        if text.len() > MAX_DOCUMENT_BYTES && !config::contains_objects(&text) {
            let message = "larger than 1 MiB, which an agent would refuse; split it";
            return Ok(Err(vec![Diagnostic::whole_file(STDIN, message)]));
        }
        Ok(Ok(vec![Document {
            name: STDIN.to_owned(),
            text,
            format: match self.format {
                InputFormat::MasqAgent => Format::MasqAgent,
                InputFormat::NatRules => Format::NatRules,
            },
        }]))
    }
}

fn effective(config: &Config, ipv6: bool) -> EffectivePolicy {
    let mut rules: Vec<_> = config.rules.iter().collect();
    // A prefix comes before those that it contains.
    rules.sort_by_key(|rule| rule.prefix);
    let row = |rule: &config::Rule| RuleRow {
        prefix: rule.prefix.to_string(),
        action: rule.action.to_string(),
        origins: std::iter::once(&rule.origin)
            .chain(&rule.also)
            .map(ToString::to_string)
            .collect(),
    };
    EffectivePolicy {
        hash: config.hash(),
        rules: rules.into_iter().map(row).collect(),
        others: config::RuleAction::Masquerade.to_string(),
        ipv6,
        resync_interval_seconds: config.resync_interval.as_secs_f64(),
        masq_link_local: config.masq_link_local,
        masq_link_local_ipv6: config.masq_link_local_ipv6,
        auto_non_masquerade: config.auto.clone(),
    }
}

impl CheckReport {
    fn text(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        for (what, findings) in [
            ("error", &self.errors),
            ("warning", &self.warnings),
            ("differs", &self.differences),
            ("note", &self.notes),
        ] {
            lines.extend(findings.iter().map(|finding| format!("{what}: {finding}")));
        }
        if let Some(policy) = &self.policy {
            if !lines.is_empty() {
                lines.push(String::new());
            }
            lines.push(policy.text());
            lines.push(format!(
                "{}, {}; config {}",
                plural(policy.rules.len(), "rule", "rules"),
                plural(self.warnings.len(), "warning", "warnings"),
                policy.hash
            ));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }
}

impl EffectivePolicy {
    fn text(&self) -> String {
        let mut table = output::table(&["PREFIX", "ACTION", "ORIGIN"]);
        for rule in &self.rules {
            table.add_row([&rule.prefix, &rule.action, &rule.origins.join(", ")]);
        }
        let all_v4 = self.rules.iter().any(|rule| rule.prefix == "0.0.0.0/0");
        let all_v6 = self.rules.iter().any(|rule| rule.prefix == "::/0");
        if !(all_v4 && (all_v6 || !self.ipv6)) {
            table.add_row(["everything else", &self.others, "default"]);
        }
        if !self.ipv6 {
            table.add_row(["IPv6", "bypass", "off without --enable-ipv6"]);
        }
        table.to_string()
    }
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

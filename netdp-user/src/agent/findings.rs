//! Findings about the network, for people: in the report, and once in the log.

use log::Level;

/// Findings of the uplink selection, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Patterns without a matching interface yet, those of `--uplink` first.
    pub waiting: Vec<Waiting>,
    /// Reason why there is no uplink at all, if so.
    pub no_uplink: Option<String>,
    /// Reason why not all addresses of the node are in the map, if so.
    pub no_room: Option<String>,
    /// Interfaces named by `--uplink` that cannot be uplinks.
    pub left_out: Vec<String>,
    /// Decisions about stacked devices.
    pub stacked: Vec<String>,
    /// Interfaces by which packets to masqueraded destinations leave untranslated.
    pub leaks: Vec<String>,
    /// Interfaces towards guests of the node.
    pub guests: Vec<String>,
    /// Paths past the hooks of the uplinks.
    pub detours: Vec<String>,
    /// IPsec policies that cover pods' packets after translation to the node's address.
    pub ipsec: Vec<String>,
}

/// A flag that names interfaces by which pods' traffic leaves or enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    Uplink,
    Hairpin,
}

impl Flag {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "--uplink",
            Self::Hairpin => "--hairpin-interface",
        }
    }
}

/// A pattern without a matching interface yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub flag: Flag,
    pub pattern: String,
    /// Suggested replacement for the pattern.
    pub hint: Option<String>,
}

impl Findings {
    /// Returns the patterns of a flag without a matching interface yet.
    pub(super) fn waiting_for(&self, flag: Flag) -> Vec<String> {
        let waiting = self.waiting.iter().filter(|it| it.flag == flag);
        waiting.map(|it| it.pattern.clone()).collect()
    }

    /// Returns the suggestions for patterns that match nothing.
    pub(super) fn hints(&self) -> Vec<String> {
        let hinted = self.waiting.iter().filter_map(|it| {
            let (flag, pattern, hint) = (it.flag.name(), &it.pattern, it.hint.as_ref()?);
            Some(format!("{flag} {pattern}: {hint}"))
        });
        hinted.collect()
    }

    /// Returns the log lines for findings that are not in `before`.
    pub(super) fn news(&self, before: &Self) -> Vec<(Level, String)> {
        let mut news = Vec::new();
        let mut all = |level: Level, now: &[String], before: &[String]| {
            let new = now.iter().filter(|what| !before.contains(what));
            news.extend(new.map(|what| (level, what.clone())));
        };
        let waiting: Vec<_> = [Flag::Uplink, Flag::Hairpin]
            .into_iter()
            .filter(|flag| self.waiting_for(*flag) != before.waiting_for(*flag))
            .flat_map(|flag| self.waiting.iter().filter(move |it| it.flag == flag))
            .map(Waiting::line)
            .collect();
        for (level, line) in waiting {
            all(level, &[line], &[]);
        }
        if let Some(reason) = &self.no_uplink
            && self.no_uplink != before.no_uplink
            && self.waiting_for(Flag::Uplink).is_empty()
        {
            all(Level::Warn, &[format!("no uplink: {reason}")], &[]);
        }
        if self.stacked != before.stacked {
            all(Level::Info, &self.stacked, &[]);
        }
        all(Level::Warn, &self.left_out, &before.left_out);
        all(Level::Error, &self.leaks, &before.leaks);
        if before.leaks.iter().any(|what| !self.leaks.contains(what)) {
            let left = self.leaks.len();
            let line =
                format!("interfaces by which masqueraded destinations leave untranslated: {left}");
            all(Level::Info, &[line], &[]);
        }
        let guests = self.guests.iter();
        let guests: Vec<_> = guests.filter(|it| !before.guests.contains(it)).collect();
        if !guests.is_empty() {
            let line = format!(
                "{guests:?} lead to guests of this node: traffic to them is not masqueraded"
            );
            all(Level::Info, &[line], &[]);
        }
        all(Level::Warn, &self.detours, &before.detours);
        all(Level::Warn, &self.ipsec, &before.ipsec);
        if self.no_room != before.no_room {
            match &self.no_room {
                Some(problem) => all(Level::Error, std::slice::from_ref(problem), &[]),
                None => {
                    let line =
                        "the datapath's map holds all addresses of the node again".to_owned();
                    all(Level::Info, &[line], &[]);
                }
            }
        }
        news
    }
}

impl Waiting {
    fn line(&self) -> (Level, String) {
        let (flag, pattern) = (self.flag.name(), &self.pattern);
        let and = self.hint.as_ref();
        let and = and.map_or_else(String::new, |hint| format!("; {hint}"));
        // Pods may start at any time.
        let level = match (self.flag, &self.hint) {
            (Flag::Hairpin, None) => Level::Info,
            _ => Level::Warn,
        };
        let line = format!("no interface matches {flag} {pattern} yet: waiting for it{and}");
        (level, line)
    }
}

#[cfg(test)]
mod tests {
    use super::{Findings, Flag, Waiting};
    use log::Level;

    fn waiting(flag: Flag, hint: Option<&str>) -> Waiting {
        Waiting {
            flag,
            pattern: "x0".into(),
            hint: hint.map(str::to_owned),
        }
    }

    #[test]
    fn only_what_is_new_is_logged() {
        let now = Findings {
            waiting: vec![
                waiting(Flag::Uplink, Some("there is y0")),
                waiting(Flag::Hairpin, None),
            ],
            leaks: vec!["leak".into()],
            guests: vec!["vm0".into()],
            no_room: Some("too many".into()),
            ..Findings::default()
        };
        let news = now.news(&Findings::default());
        let levels: Vec<_> = news.iter().map(|(level, _)| *level).collect();
        use Level::{Error, Info, Warn};
        assert_eq!(levels, [Warn, Info, Error, Info, Error], "{news:?}");
        assert!(
            news[0].1.ends_with("waiting for it; there is y0"),
            "{news:?}"
        );
        assert_eq!(now.news(&now), []);
        let gone = Findings::default().news(&now);
        let gone: Vec<_> = gone.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(
            gone,
            [
                "interfaces by which masqueraded destinations leave untranslated: 0",
                "the datapath's map holds all addresses of the node again"
            ]
        );
    }

    #[test]
    fn a_reason_is_not_logged_where_something_is_waited_for() {
        let mut now = Findings {
            no_uplink: Some("no route".into()),
            ..Findings::default()
        };
        assert_eq!(now.news(&Findings::default()).len(), 1);
        now.waiting = vec![waiting(Flag::Uplink, None)];
        let news = now.news(&Findings::default());
        assert!(
            news.len() == 1 && news[0].1.contains("--uplink x0"),
            "{news:?}"
        );
    }
}

//! Detection of the distribution.

use std::fmt;

/// The distribution, as /etc/os-release identifies it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct System {
    id: String,
    version: String,
    name: String,
}

impl System {
    /// Reads /etc/os-release; without it, the distribution is unknown.
    pub fn of_this_machine() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/os-release").unwrap_or_default())
    }

    /// Reports whether setup supports this distribution.
    pub fn is_supported(&self) -> bool {
        self.id == "debian" && self.version == "12"
    }

    fn parse(os_release: &str) -> Self {
        let mut system = Self::default();
        for line in os_release.lines() {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let field = match key {
                "ID" => &mut system.id,
                "VERSION_ID" => &mut system.version,
                "PRETTY_NAME" => &mut system.name,
                _ => continue,
            };
            value.trim_matches(['"', '\'']).clone_into(field);
        }
        system
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.name.is_empty() {
            "an unknown system"
        } else {
            &self.name
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_12_is_supported() {
        let system =
            System::parse("PRETTY_NAME=\"Debian GNU/Linux 12\"\nVERSION_ID=\"12\"\nID=debian\n");
        assert!(system.is_supported());
        assert_eq!(system.to_string(), "Debian GNU/Linux 12");
    }

    #[test]
    fn others_are_not() {
        assert!(!System::parse("ID=debian\nVERSION_ID='13'").is_supported());
        assert!(!System::parse("ID=ubuntu\nVERSION_ID=\"12\"").is_supported());
        assert_eq!(System::parse("").to_string(), "an unknown system");
    }
}

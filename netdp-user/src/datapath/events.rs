//! Which events the programs report.

use super::maps::Maps;
use anyhow::Result;

impl Maps {
    /// Sets the events that the programs report (`Settings::events`).
    ///
    /// # Errors
    /// Returns an error if the settings can't be read or written.
    pub(crate) fn set_events(&mut self, setting: u32) -> Result<()> {
        let mut settings = self.settings()?;
        if settings.events == setting {
            return Ok(());
        }
        settings.events = setting;
        self.set_settings(&settings)
    }
}

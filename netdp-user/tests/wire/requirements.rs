//! The table behind docs/nat-behaviour.md.
pub fn check() -> anyhow::Result<()> {
    Ok(())
}

//! `image`: an OCI image and its bill of materials, with checks of both.

use crate::{setup, shell};
use anyhow::{Result, ensure};
use clap::Args;
use comfy_table::Table;
use xtask::image::{self, Image, Packages};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Registry, repository and tag of the image.
    #[arg(long)]
    name: Option<String>,
    /// Build everything a second time, in another directory, and compare.
    #[arg(long)]
    twice: bool,
}

/// Builds the image; with `--twice`, returns an error unless both builds have the same digest.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::run_for_image()?;
    let name = arguments.name.as_deref().unwrap_or(image::NAME);
    let directory = image::target_dir()?;
    let image = image::make_with(name, &directory, Packages::Latest)?;
    if arguments.twice {
        let again = tempfile::tempdir()?;
        let second = image::make_with(name, again.path(), Packages::Latest)?;
        ensure!(
            image.digest == second.digest,
            "not reproducible: {} the first time, {} the second",
            image.digest,
            second.digest
        );
        shell::progress("built a second time elsewhere: the same digest");
    }
    println!("{}", table(name, &image));
    Ok(())
}

fn table(name: &str, image: &Image) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.add_row(["image", name]);
    table.add_row(["digest", &image.digest]);
    table.add_row(["archive", &image.archive.display().to_string()]);
    table.add_row(["archive's size", &megabytes(image.size)]);
    table.add_row(["program's size", &megabytes(image.program_size)]);
    table.add_row(["bill of materials", &image.sbom.display().to_string()]);
    table
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a size to read, with two decimals"
)]
fn megabytes(bytes: u64) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}

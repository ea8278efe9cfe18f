//! `release`: all files that a release publishes, in one directory, with checksums.

use crate::{setup, shell};
use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use comfy_table::Table;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use xtask::image::{self, Image, Packages};

/// Version to be released.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Name of the checksum file, in the format of `sha256sum --check`.
const CHECKSUMS: &str = "SHA256SUMS";

/// Directory of the chart, relative to the workspace.
const CHART: &str = "deploy/helm/netdp";

/// Manifest that contains the image name.
const DAEMONSET: &str = "deploy/kustomize/base/daemonset.yaml";

#[derive(Debug, Args)]
pub struct Arguments {
    /// Build although conditions of a release are not met, and list them.
    #[arg(long)]
    dry_run: bool,
    /// Registry, repository and tag of the image.
    #[arg(long, default_value = image::NAME)]
    name: String,
}

/// Builds the files of a release and prints them with their digests. Publishes nothing.
pub fn run(arguments: &Arguments) -> Result<()> {
    setup::run_for_release()?;
    let obstacles = obstacles()?;
    if !obstacles.is_empty() {
        let list = obstacles.join("\n  ");
        ensure!(
            arguments.dry_run,
            "{VERSION} can't be released (see RELEASE.md):\n  {list}"
        );
        shell::progress(&format!("not ready for a release:\n  {list}"));
    }
    let target_dir = image::target_dir()?;
    let image = image::make_with(&arguments.name, &target_dir, Packages::Latest)?;
    // What a dry run leaves is not to be taken for a release.
    let suffix = if arguments.dry_run { "-dry-run" } else { "" };
    let directory = target_dir.join(format!("release-{VERSION}{suffix}"));
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    let files = collect(&image, &directory)?;
    let sums = checksums(&files, &directory)?;
    println!(
        "{}\n\n{} has the digest {}\n{}",
        table(&files, &sums, &directory)?,
        arguments.name,
        image.digest,
        directory.display()
    );
    Ok(())
}

/// Copies the files of the release to a directory and returns their names.
fn collect(image: &Image, directory: &Path) -> Result<Vec<String>> {
    let stem = format!("netdp-{VERSION}-linux-{}", image.arch);
    let mut files = Vec::new();
    for (from, name) in [
        (&image.program, stem.clone()),
        (&image.archive, format!("{stem}.oci.tar")),
        (&image.sbom, format!("{stem}.cdx.json")),
    ] {
        fs::copy(from, directory.join(&name))
            .with_context(|| format!("copying {} to {name}", from.display()))?;
        files.push(name);
    }
    let said = output(Command::new(directory.join(&stem)).arg("-V"))?;
    ensure!(
        said.split_whitespace().last() == Some(VERSION),
        "the program reports version {said:?}, not {VERSION}"
    );
    files.push(package_plugin(image, directory)?);
    files.push(package_share(&image.program, directory)?);
    files.push(package_chart(directory)?);
    Ok(files)
}

/// Packs the program under the names that kubectl looks for, to be unpacked in a directory of `$PATH`,
/// and returns the name of the file.
fn package_plugin(image: &Image, directory: &Path) -> Result<String> {
    let work = tempfile::tempdir()?;
    let plugin = work.path().join("kubectl-netdp");
    fs::copy(&image.program, &plugin).with_context(|| format!("writing {}", plugin.display()))?;
    symlink("kubectl-netdp", work.path().join("kubectl_complete-netdp"))?;
    let name = format!("kubectl-netdp-{VERSION}-linux-{}.tar.gz", image.arch);
    pack(work.path(), &directory.join(&name))?;
    Ok(name)
}

/// Packs man pages and completions, to be unpacked in `/usr/local/share`, and returns the name of the
/// file.
fn package_share(program: &Path, directory: &Path) -> Result<String> {
    let work = tempfile::tempdir()?;
    let share = work.path().join("share");
    image::describe(program, &share)?;
    let name = format!("netdp-{VERSION}-share.tar.gz");
    pack(&share, &directory.join(&name))?;
    Ok(name)
}

/// Packs a directory. Order, times and owners are fixed, so that the same files give the same archive.
fn pack(directory: &Path, archive: &Path) -> Result<()> {
    shell::run_as_progress(
        Command::new("tar")
            .args(["--create", "--use-compress-program=gzip --no-name"])
            .args(["--sort=name", "--mtime=@0", "--owner=0", "--group=0"])
            .args(["--numeric-owner", "--mode=u=rwX,go=rX", "--file"])
            .arg(archive)
            .arg("--directory")
            .arg(directory)
            .arg("."),
    )
}

/// Packages the chart with Helm, in a process that has all of xtask, and returns the name of the
/// file. Helm copies the files' times: they are set to 0, so that the same chart gives the same
/// archive.
fn package_chart(directory: &Path) -> Result<String> {
    let work = tempfile::tempdir()?;
    let chart = work.path().join("netdp");
    shell::run_as_progress(
        Command::new("cp")
            .arg("--recursive")
            .arg(shell::root().join(CHART))
            .arg(&chart),
    )?;
    shell::run_as_progress(Command::new("find").arg(&chart).args([
        "-exec",
        "touch",
        "--date=@0",
        "{}",
        "+",
    ]))?;
    shell::run_as_progress(
        shell::cargo()
            .args([
                "run",
                "--quiet",
                "--package",
                "xtask",
                "--",
                "helm",
                "--package",
            ])
            .arg(directory)
            .arg(&chart),
    )
    .context("packaging the chart")?;
    let name = format!("netdp-{VERSION}.tgz");
    ensure!(
        directory.join(&name).is_file(),
        "Helm left no {name}: is that the version in {CHART}/Chart.yaml?"
    );
    Ok(name)
}

/// Writes the checksums, verifies them, and returns them in the order of the files.
fn checksums(files: &[String], directory: &Path) -> Result<Vec<String>> {
    let sha256sum = || {
        let mut command = Command::new("sha256sum");
        command.current_dir(directory);
        command
    };
    let sums = output(sha256sum().args(files))?;
    let path = directory.join(CHECKSUMS);
    fs::write(&path, &sums).with_context(|| format!("writing {}", path.display()))?;
    shell::run_as_progress(sha256sum().args(["--check", "--strict", "--quiet", CHECKSUMS]))?;
    Ok(sums
        .lines()
        .filter_map(|line| line.split(' ').next())
        .map(str::to_owned)
        .collect())
}

fn table(files: &[String], sums: &[String], directory: &Path) -> Result<Table> {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.add_row(["file", "bytes", "SHA-256"]);
    for (file, sum) in files.iter().zip(sums) {
        let size = fs::metadata(directory.join(file))?.len();
        table.add_row([file, &size.to_string(), sum]);
    }
    Ok(table)
}

/// Returns the reasons why the sources must not be released as they are.
fn obstacles() -> Result<Vec<String>> {
    let read = |path: &str| -> Result<String> {
        fs::read_to_string(shell::root().join(path)).with_context(|| format!("reading {path}"))
    };
    let mut obstacles = in_documents(
        VERSION,
        &read("CHANGELOG.md")?,
        &read(&format!("{CHART}/Chart.yaml"))?,
        &read(DAEMONSET)?,
    );
    obstacles.extend(in_git()?);
    Ok(obstacles)
}

fn in_documents(version: &str, changelog: &str, chart: &str, daemonset: &str) -> Vec<String> {
    let mut obstacles = Vec::new();
    let heading = format!("## [{version}] - ");
    if !changelog.lines().any(|line| line.starts_with(&heading)) {
        obstacles.push(format!(
            "CHANGELOG.md has no `{heading}DATE`: rename Unreleased, and begin a new one"
        ));
    }
    let chart_file = format!("{CHART}/Chart.yaml");
    for (path, text, line) in [
        (chart_file.as_str(), chart, format!("version: {version}")),
        (chart_file.as_str(), chart, format!("appVersion: {version}")),
        (
            DAEMONSET,
            daemonset,
            format!("image: localhost/netdp:{version}"),
        ),
    ] {
        if !text.lines().any(|it| it.trim_start() == line) {
            obstacles.push(format!("{path} has no `{line}`"));
        }
    }
    obstacles
}

fn in_git() -> Result<Vec<String>> {
    let git = |arguments: &[&str]| {
        output(
            Command::new("git")
                .current_dir(shell::root())
                .args(arguments),
        )
    };
    let mut obstacles = Vec::new();
    let changed = git(&["status", "--porcelain"])?;
    if !changed.is_empty() {
        obstacles.push(format!(
            "{} files differ from the last commit: commit or stash them",
            changed.lines().count()
        ));
    }
    let tag = format!("v{VERSION}");
    if !git(&["tag", "--points-at", "HEAD"])?
        .lines()
        .any(|it| it == tag)
    {
        obstacles.push(format!(
            "the last commit has no tag {tag}: git tag --sign {tag}"
        ));
    }
    Ok(obstacles)
}

/// Runs a command and returns its standard output.
fn output(command: &mut Command) -> Result<String> {
    let line = shell::line(command);
    let out = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting `{line}`"))?;
    if !out.status.success() {
        bail!("`{line}`: {}", out.status);
    }
    String::from_utf8(out.stdout).with_context(|| format!("`{line}` wrote no UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGELOG: &str = "# Changelog\n\n## [Unreleased]\n\n## [0.2.0] - 2027-01-31\n";
    const CHART: &str = "name: netdp\nversion: 0.2.0\nappVersion: 0.2.0\n";
    const DAEMONSET: &str = "containers:\n- name: netdp\n  image: localhost/netdp:0.2.0\n";

    #[test]
    fn a_version_that_is_in_all_documents_can_be_released() {
        assert!(in_documents("0.2.0", CHANGELOG, CHART, DAEMONSET).is_empty());
    }

    #[test]
    fn what_is_missing_is_named() {
        let obstacles = in_documents("0.2", CHANGELOG, CHART, DAEMONSET);
        assert_eq!(obstacles.len(), 4, "{obstacles:?}");
        assert!(obstacles[0].contains("CHANGELOG.md has no `## [0.2] - DATE`"));
        assert!(obstacles[1].contains("Chart.yaml has no `version: 0.2`"));
        assert!(obstacles[2].contains("Chart.yaml has no `appVersion: 0.2`"));
        assert!(obstacles[3].contains("daemonset.yaml has no `image: localhost/netdp:0.2`"));
    }

    #[test]
    fn the_plugin_has_both_names_that_kubectl_looks_for() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("netdp");
        fs::write(&program, "program").unwrap();
        let image = Image {
            archive: program.clone(),
            sbom: program.clone(),
            program,
            digest: String::new(),
            arch: "amd64",
            program_size: 0,
            size: 0,
        };
        let name = package_plugin(&image, directory.path()).unwrap();
        let archive = directory.path().join(name);
        let listed = output(Command::new("tar").arg("--list").arg("--file").arg(archive)).unwrap();
        for name in ["./kubectl-netdp", "./kubectl_complete-netdp"] {
            assert!(listed.lines().any(|line| line == name), "{listed}");
        }
    }

    #[test]
    fn checksums_are_those_of_the_files() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("netdp"), "abc").unwrap();
        let sums = checksums(&["netdp".into()], directory.path()).unwrap();
        // FIPS 180-2, appendix B.1.
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sums, [abc]);
        let written = fs::read_to_string(directory.path().join(CHECKSUMS)).unwrap();
        assert_eq!(written, format!("{abc}  netdp\n"));
        assert!(checksums(&["gone".into()], directory.path()).is_err());
    }
}

//! `netdp support-bundle`: what is known about a node's netdp, in one archive for whoever helps.
//!
//! Each part is collected by itself and may fail by itself. Nothing reads Secrets, kubeconfigs, tokens,
//! the environment, or documents of the configuration: only what netdp made of these is in it.

mod anonymous;
mod archive;
mod counters;
mod kernel;
mod network;
mod parts;
mod secrets;

use crate::private;
use crate::programs::Program;
use crate::{format, programs, terminal, time};
use anonymous::Anonymiser;
use anyhow::{Context as _, Result, anyhow, ensure};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Selection of what to collect, and the place to write it to.
#[derive(Debug)]
pub(crate) struct Options<'a> {
    pub(crate) bpffs: &'a Path,
    pub(crate) state_dir: &'a Path,
    pub(crate) cni_dir: &'a Path,
    /// Directories of third-party programs.
    pub(crate) tool_dirs: &'a [PathBuf],
    /// The archive; `-` is standard output. Without it, a name is made.
    pub(crate) output: Option<&'a Path>,
    /// List the parts instead of writing them.
    pub(crate) preview: bool,
    /// Replace names and addresses.
    pub(crate) anonymous: bool,
    /// Include single mappings.
    pub(crate) flows: bool,
}

/// A part of the bundle.
#[derive(Debug)]
struct Part {
    /// Its file's name.
    name: &'static str,
    /// Its contents, for the list.
    about: &'static str,
    content: Result<String>,
}

/// Collects all parts, and writes them or lists them.
///
/// # Errors
/// Returns an error if the archive can't be written.
pub(crate) fn make(options: &Options<'_>) -> Result<()> {
    let own = programs::own()?;
    let mut parts = parts::collect(&Source { options, own });
    for part in &mut parts {
        match &mut part.content {
            Ok(text) => *text = secrets::without(text),
            Err(err) => *err = anyhow!(secrets::without(&format!("{err:#}"))),
        }
    }
    if options.anonymous {
        anonymise(&mut parts, options);
    }
    let files = files(parts, options.anonymous);
    if options.preview {
        return crate::cli::output::write_out(&listing(&files), false);
    }
    let archive = archive::pack(&files)?;
    write(&archive, options)
}

/// Source of the parts.
struct Source<'a> {
    options: &'a Options<'a>,
    own: Program,
}

/// A file of the archive.
struct BundleFile {
    name: &'static str,
    text: String,
}

fn anonymise(parts: &mut [Part], options: &Options<'_>) {
    let mut names = parts::names(options);
    let mut texts: Vec<String> = Vec::new();
    for part in &mut *parts {
        match &part.content {
            Ok(text) => names.find(text),
            Err(err) => texts.push(format!("{err:#}")),
        }
    }
    texts.iter().for_each(|text| names.find(text));
    let anonymiser = Anonymiser::new(&names);
    for part in parts {
        part.content = match &part.content {
            Ok(text) => Ok(anonymiser.text(text)),
            Err(err) => Err(anyhow::anyhow!(anonymiser.text(&format!("{err:#}")))),
        };
    }
}

/// Returns the files: the list of contents, with the parts that failed, and the others.
fn files(parts: Vec<Part>, anonymous: bool) -> Vec<BundleFile> {
    let made = time::now();
    let mut contents = format!(
        "netdp {} support bundle, made {}\n",
        env!("CARGO_PKG_VERSION"),
        format::utc_time(made).unwrap_or_default()
    );
    if anonymous {
        contents +=
            "Names of pods, namespaces, nodes and hosts, and addresses, are replaced by others.\n";
    }
    contents.push('\n');
    let mut files = Vec::new();
    for part in parts {
        // Writing to a String can't fail.
        let _ = match part.content {
            Ok(text) => {
                let wrote = writeln!(contents, "{:<28} {}", part.name, part.about);
                let name = part.name;
                files.push(BundleFile { name, text });
                wrote
            }
            Err(err) => {
                let why = format!("{err:#}");
                let why = terminal::line(&why);
                writeln!(contents, "{:<28} not there: {why}", part.name)
            }
        };
    }
    let name = "contents.txt";
    files.insert(
        0,
        BundleFile {
            name,
            text: contents,
        },
    );
    files
}

/// Lists names and sizes, and what the list of contents says.
fn listing(files: &[BundleFile]) -> String {
    let mut rows = crate::cli::output::table(&["FILE", "SIZE"]);
    for file in files {
        rows.add_row([file.name.to_owned(), format::bytes(file.text.len() as u64)]);
    }
    let contents = files.first().map_or("", |file| &file.text);
    format!("{rows}\n\n{contents}")
}

fn write(archive: &[u8], options: &Options<'_>) -> Result<()> {
    if options.output == Some(Path::new("-")) {
        let mut out = std::io::stdout();
        let written = out.write_all(archive).and_then(|()| out.flush());
        return written.context("writing to standard output");
    }
    let path = match options.output {
        Some(path) => path.to_owned(),
        None => default_name(options.anonymous),
    };
    // Never over a file of somebody else's.
    ensure!(
        !path.exists(),
        "{} is there already: remove it, or name another file with -o",
        path.display()
    );
    let mut file =
        private::create(&path).with_context(|| format!("creating {}", path.display()))?;
    let written = file.write_all(archive).and_then(|()| file.sync_all());
    if let Err(err) = written {
        // Half an archive helps nobody.
        let _ = std::fs::remove_file(&path);
        return Err(err).with_context(|| format!("writing {}", path.display()));
    }
    eprintln!(
        "netdp: wrote {}, {}; --preview lists what such a bundle has",
        terminal::line(&path.display().to_string()),
        format::bytes(archive.len() as u64)
    );
    Ok(())
}

/// Returns the archive's name in the working directory: with the node's, unless that is hidden.
fn default_name(anonymous: bool) -> PathBuf {
    let node = match anonymous {
        true => "node".to_owned(),
        false => parts::hostname().unwrap_or_else(|| "node".to_owned()),
    };
    PathBuf::from(format!("netdp-bundle-{node}-{}.tar.gz", time::now()))
}

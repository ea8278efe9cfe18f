use std::os::unix::fs::symlink;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// Returns the names (below `root`) and texts of the documents read from `paths`.
#[track_caller]
fn documents(root: &Path, paths: &[&str]) -> Vec<(String, String)> {
    let paths: Vec<_> = paths.iter().map(|path| root.join(path)).collect();
    let below = |name: &str| name[root.to_str().unwrap().len() + 1..].to_owned();
    let documents = read(&paths).unwrap();
    documents
        .into_iter()
        .map(|doc| (below(&doc.name), doc.text))
        .collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
    expected.iter().map(owned).collect()
}

#[test]
fn a_directory_is_its_files_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    let dir = root.join("dir");
    fs::create_dir_all(dir.join("sub")).unwrap();
    for name in [
        "b",
        "a",
        "B",
        "10",
        ".hidden",
        "a~",
        ".b.swp",
        "sub/x",
        "../elsewhere",
    ] {
        fs::write(dir.join(name), name).unwrap();
    }
    symlink("../elsewhere", dir.join("link")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    symlink("sub", dir.join("linked-dir")).unwrap();
    mkfifo(&dir.join("fifo"), Mode::S_IRWXU).unwrap();
    assert_eq!(
        documents(root, &["dir"]),
        pairs(&[
            ("dir/10", "10"),
            ("dir/B", "B"),
            ("dir/a", "a"),
            ("dir/b", "b"),
            ("dir/link", "../elsewhere"),
        ])
    );
}

#[test]
fn paths_are_read_in_their_order() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/x"), "1").unwrap();
    // A file that is named explicitly may have any name.
    fs::write(root.join(".own~"), "2").unwrap();
    let expected = pairs(&[(".own~", "2"), ("dir/x", "1")]);
    assert_eq!(documents(root, &[".own~", "dir"]), expected);
}

#[test]
fn what_does_not_exist_is_no_document() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::write(root.join("file"), "").unwrap();
    symlink("nowhere", root.join("dangling")).unwrap();
    let names = ["none", "none/deeper", "file/below", "dangling"];
    assert_eq!(documents(root, &names), []);
    let paths: Vec<_> = names
        .iter()
        .chain(&["file"])
        .map(|name| root.join(name))
        .collect();
    assert_eq!(missing(&paths), paths[..4].iter().collect::<Vec<_>>());
    // A file that vanishes after it was listed.
    assert_eq!(read_one(&root.join("none"), true), Ok(None));
}

#[test]
fn what_cannot_be_read_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/good"), "{}").unwrap();
    fs::write(root.join("dir/latin1"), b"{}\n#\xe9").unwrap();
    fs::write(root.join("dir/large"), vec![b' '; MAX_DOCUMENT_BYTES + 1]).unwrap();
    symlink("loop", root.join("dir/loop")).unwrap();
    mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
    let paths = ["dir", "fifo"].map(|name| root.join(name));
    let rejected = read(&paths).unwrap_err().to_string();
    let expected = [
        "dir/large: larger than 1 MiB",
        "dir/latin1:2: not UTF-8",
        "dir/loop: cannot be read: ",
        "fifo: neither a regular file nor a directory",
    ];
    assert_eq!(rejected.lines().count(), expected.len(), "{rejected}");
    for (line, start) in rejected.lines().zip(expected) {
        let start = format!("{}/{start}", root.display());
        assert!(line.starts_with(&start), "{line}");
    }
    // The maximum size is accepted.
    fs::write(root.join("full"), vec![b' '; MAX_DOCUMENT_BYTES]).unwrap();
    assert_eq!(documents(root, &["full"])[0].1.len(), MAX_DOCUMENT_BYTES);
}

#[test]
fn all_files_together_have_a_greatest_size() {
    let temp = tempfile::tempdir().unwrap();
    let line = "# nothing but a remark\n";
    let text = line.repeat(MAX_DOCUMENT_BYTES / line.len());
    for n in 0..=65 {
        fs::write(temp.path().join(format!("{n:02}")), &text).unwrap();
    }
    let rejected = read(&[temp.path().to_owned()]).unwrap_err();
    assert_eq!(rejected.errors.len(), 1);
    let message = rejected.to_string();
    assert!(
        message.contains("64 MiB") && message.contains("/64: "),
        "{message}"
    );
}

#[test]
fn what_is_not_there_may_be_called_otherwise() {
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    fs::create_dir(at("netdp")).unwrap();
    fs::write(at("config.yaml"), "").unwrap();
    for (name, words) in [
        ("netpd", "did you mean"),
        ("config.yml", "config.yaml?"),
        ("Config.yaml", "config.yaml?"),
    ] {
        let meant = suggest(&at(name));
        assert!(
            meant.as_ref().is_some_and(|it| it.contains(words)),
            "{name}: {meant:?}"
        );
    }
    let both = format!("{},{}", at("netdp").display(), at("config.yaml").display());
    let meant = suggest(Path::new(&both)).unwrap();
    assert!(meant.starts_with("give each path by itself: "), "{meant}");
    for name in ["other", "none/config.yaml", "/"] {
        assert_eq!(suggest(&at(name)), None, "{name}");
    }
}

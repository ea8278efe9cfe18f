use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::sources::file::read;

const DEADLINE: Duration = Duration::from_secs(10);

/// A watched path in a directory of its own.
struct Scene {
    temp: TempDir,
    paths: Vec<PathBuf>,
    watcher: Watcher,
}

impl Scene {
    /// Prepares a directory, then watches `path` in it.
    fn new(path: &str, prepare: impl FnOnce(&Path)) -> Self {
        let temp = tempfile::tempdir().unwrap();
        prepare(temp.path());
        let paths = vec![temp.path().join(path)];
        let watcher = Watcher::new(&paths);
        assert_eq!(watcher.problem(), None);
        Self {
            temp,
            paths,
            watcher,
        }
    }

    fn texts(&self) -> Vec<String> {
        let documents = read(&self.paths).unwrap();
        documents.into_iter().map(|doc| doc.text).collect()
    }

    /// Makes a change, then waits until notifications have led to reading `expected`.
    async fn expect(&mut self, change: impl FnOnce(&Path), expected: &[&str]) {
        assert_ne!(self.texts(), expected, "the change would go unseen");
        change(self.temp.path());
        let seen = async {
            loop {
                self.watcher.changed().await;
                if self.texts() == expected {
                    return;
                }
            }
        };
        if timeout(DEADLINE, seen).await.is_err() {
            panic!("{expected:?} was not noticed; there is {:?}", self.texts());
        }
    }
}

fn write(root: &Path, name: &str, text: &str) {
    fs::write(root.join(name), text).unwrap();
}

fn rename(root: &Path, from: &str, to: &str) {
    fs::rename(root.join(from), root.join(to)).unwrap();
}

#[tokio::test]
async fn a_file_is_edited_replaced_deleted_and_recreated() {
    for path in ["dir/file", "dir"] {
        let mut scene = Scene::new(path, |root| {
            fs::create_dir(root.join("dir")).unwrap();
            write(root, "dir/file", "1");
        });
        scene
            .expect(|root| write(root, "dir/file", "2"), &["2"])
            .await;
        let replace = |root: &Path| {
            write(root, "dir/.file.new", "3");
            rename(root, "dir/.file.new", "dir/file");
        };
        scene.expect(replace, &["3"]).await;
        scene
            .expect(|root| write(root, "dir/file", "4"), &["4"])
            .await;
        scene
            .expect(|root| fs::remove_file(root.join("dir/file")).unwrap(), &[])
            .await;
        scene
            .expect(|root| write(root, "dir/file", "5"), &["5"])
            .await;
        scene
            .expect(|root| rename(root, "dir/file", "elsewhere"), &[])
            .await;
        scene
            .expect(|root| rename(root, "elsewhere", "dir/file"), &["5"])
            .await;
    }
}

#[tokio::test]
async fn files_come_and_go_in_a_directory() {
    let mut scene = Scene::new("dir", |root| fs::create_dir(root.join("dir")).unwrap());
    scene.expect(|root| write(root, "dir/b", "b"), &["b"]).await;
    scene
        .expect(|root| write(root, "dir/a", "a"), &["a", "b"])
        .await;
    // A new link to a file elsewhere, which then changes there.
    write(scene.temp.path(), "c", "c");
    scene
        .expect(
            |root| symlink("../c", root.join("dir/c")).unwrap(),
            &["a", "b", "c"],
        )
        .await;
    scene
        .expect(|root| write(root, "c", "C"), &["a", "b", "C"])
        .await;
    scene
        .expect(|root| fs::remove_dir_all(root.join("dir")).unwrap(), &[])
        .await;
    let recreate = |root: &Path| {
        fs::create_dir(root.join("dir")).unwrap();
        write(root, "dir/d", "d");
    };
    scene.expect(recreate, &["d"]).await;
    scene.expect(|root| write(root, "dir/d", "D"), &["D"]).await;
}

#[tokio::test]
async fn a_directory_is_replaced_by_another() {
    let mut scene = Scene::new("dir", |root| {
        for (dir, text) in [("dir", "1"), ("next", "2")] {
            fs::create_dir(root.join(dir)).unwrap();
            write(root, &format!("{dir}/file"), text);
        }
    });
    let swap = |root: &Path| {
        rename(root, "dir", "old");
        rename(root, "next", "dir");
    };
    scene.expect(swap, &["2"]).await;
    scene
        .expect(|root| write(root, "dir/file", "3"), &["3"])
        .await;
}

#[tokio::test]
async fn directories_that_do_not_exist_yet() {
    for path in ["a/b/c/file", "a/b/c"] {
        let mut scene = Scene::new(path, |_| {});
        // One by one, each detected before the next: the watch has to move along.
        for dir in ["a", "a/b", "a/b/c"] {
            fs::create_dir(scene.temp.path().join(dir)).unwrap();
            timeout(DEADLINE, scene.watcher.changed()).await.unwrap();
        }
        scene
            .expect(|root| write(root, "a/b/c/file", "1"), &["1"])
            .await;
        scene
            .expect(|root| fs::remove_dir_all(root.join("a")).unwrap(), &[])
            .await;
        // All directories at once.
        let create = |root: &Path| {
            fs::create_dir_all(root.join("a/b/c")).unwrap();
            write(root, "a/b/c/file", "2");
        };
        scene.expect(create, &["2"]).await;
    }
}

/// Updates a ConfigMap volume as the kubelet does: a new directory, then one rename of `..data`.
fn publish(root: &Path, version: &str, text: &str) {
    let volume = root.join("volume");
    fs::create_dir_all(volume.join(version)).unwrap();
    fs::write(volume.join(version).join("ip-masq-agent"), text).unwrap();
    symlink(version, volume.join("..data_tmp")).unwrap();
    let before = fs::read_link(volume.join("..data"));
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if let Ok(before) = before {
        fs::remove_dir_all(volume.join(before)).unwrap();
    }
}

#[tokio::test]
async fn a_config_map_volume_swaps_its_data() {
    for path in ["volume", "volume/ip-masq-agent"] {
        let mut scene = Scene::new(path, |root| {
            publish(root, "..2024_01_01", "1");
            symlink("..data/ip-masq-agent", root.join("volume/ip-masq-agent")).unwrap();
        });
        for round in 2..7 {
            let text = round.to_string();
            scene
                .expect(
                    |root| publish(root, &format!("..2024_01_{round:02}"), &text),
                    &[&text],
                )
                .await;
        }
        // The key is removed from the ConfigMap, then restored.
        let link = "volume/ip-masq-agent";
        scene
            .expect(|root| fs::remove_file(root.join(link)).unwrap(), &[])
            .await;
        scene
            .expect(
                |root| symlink("..data/ip-masq-agent", root.join(link)).unwrap(),
                &["6"],
            )
            .await;
    }
}

#[tokio::test]
async fn cancelling_loses_nothing() {
    let mut scene = Scene::new("file", |root| write(root, "file", "1"));
    // On a busy machine a change may settle before the wait begins, but not every change.
    let mut cancelled = 0;
    for round in 0..20 {
        write(scene.temp.path(), "file", &round.to_string());
        let noticed = async {
            // Shorter than the debounce: if cancelled waits started over, this would never end.
            while timeout(DEBOUNCE / 10, scene.watcher.changed())
                .await
                .is_err()
            {
                cancelled += 1;
            }
        };
        timeout(DEADLINE, noticed).await.unwrap();
    }
    assert!(cancelled > 0);
}

#[tokio::test]
async fn a_burst_is_few_changes() {
    let mut scene = Scene::new("dir", |root| fs::create_dir(root.join("dir")).unwrap());
    for n in 0..500 {
        write(scene.temp.path(), &format!("dir/{n}"), "");
    }
    let mut changes = 0;
    write(scene.temp.path(), "dir/last", "last");
    let seen = async {
        while changes == 0 || !scene.texts().contains(&"last".to_owned()) {
            scene.watcher.changed().await;
            changes += 1;
        }
    };
    timeout(DEADLINE, seen).await.unwrap();
    assert!(changes < 50, "{changes}");
}

#[tokio::test]
async fn without_inotify_it_reports_nothing_but_the_reason() {
    let temp = tempfile::tempdir().unwrap();
    let paths = [temp.path().join("file")];
    let mut watcher = Watcher::with(&paths, |_| {
        Err(notify::Error::new(notify::ErrorKind::MaxFilesWatch))
    });
    let problem = watcher.problem().unwrap();
    assert!(problem.contains("max_user_instances"), "{problem}");
    write(temp.path(), "file", "1");
    let silent = timeout(DEBOUNCE * 5, watcher.changed()).await;
    assert!(silent.is_err());
    // As soon as the system allows it, a resync restores the notifications.
    watcher.open = notify::recommended_watcher;
    watcher.rearm();
    assert_eq!(watcher.problem(), None);
    write(temp.path(), "file", "2");
    timeout(DEADLINE, watcher.changed()).await.unwrap();
}

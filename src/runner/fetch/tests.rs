use std::fs;

use futures_util::poll;

use super::*;
use crate::{
    files::Roots,
    runner::{
        held_up::{HeldUp, with_one_blocking_thread},
        part::Parts,
    },
    workflow::{Folder, RemoteFile},
};

#[test]
fn a_slow_disk_holds_up_nobody_else_and_a_dropped_fetch_disturbs_no_other() {
    with_one_blocking_thread(async {
        let folder = tempfile::tempdir().unwrap();
        let parts = Parts::of("mine".into(), Roots::anywhere());
        let file = RemoteFile {
            filename: "a.png".into(),
            subfolder: String::new(),
            folder: Folder::Output,
            listed_as: "images".into(),
        };
        let mut part = parts.open(parts.turn(&file).await, folder.path(), &file, Some("x")).unwrap();
        let path = part.path();
        fs::write(&path, "12345678").unwrap();
        let mut disk = HeldUp::behind_what_is_to_do();
        disk.is_reached().await;
        let mut cut = Box::pin(unfit(String::new(), &mut part));
        assert!(poll!(&mut cut).is_pending(), "it waits for the disk, and others go on");
        drop(cut);
        drop(part);
        let mut next = Box::pin(parts.turn(&file));
        assert!(poll!(&mut next).is_pending(), "the cut is still to come");
        drop(disk);
        let turn = next.await;
        assert_eq!(fs::read(&path).unwrap(), b"");
        parts.open(turn, folder.path(), &file, Some("x")).unwrap();
    });
}

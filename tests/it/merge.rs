//! The merge: the numbered traps of other implementations by name, and thousands of generated stacks against a model
//! that works from the bottom up and shares no code with it.

#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot go on may panic"
)]

pub(crate) mod model;

use hpcrun::convert::{Budget, ConvertOptions};
use hpcrun::squashfs::writer::InodeKind;

use crate::layer_building::{Member, chain, first_names, layer, merge, tar, walk};
use crate::support::{self, Random};

/// The merged tree in words: `d/`, `f=data`, `s->target`, `h==first name`; an error as its text.
fn merged(tars: &[Vec<u8>]) -> Result<String, String> {
    let (merged, sink) = merge(tars, &ConvertOptions::default()).map_err(|error| chain(&error))?;
    let tree = &merged.tree;
    let paths = walk(tree);
    let first = first_names(&paths);
    let mut words = Vec::new();
    for (path, index) in &paths {
        let Some(name) = path.strip_prefix(b"/") else { continue };
        let name = String::from_utf8_lossy(name);
        words.push(match &tree.inodes[*index as usize].kind {
            InodeKind::Directory(_) => format!("{name}/"),
            _ if first[index] != *path => format!("{name}=={}", String::from_utf8_lossy(&first[index][1..])),
            InodeKind::File(id) => format!("{name}={}", String::from_utf8_lossy(&sink.files[id.0 as usize])),
            InodeKind::Symlink(target) => format!("{name}->{}", String::from_utf8_lossy(target)),
            other => format!("{name}:{other:?}"),
        });
    }
    Ok(words.join(" "))
}

/// Layers in words, bottom first; the result in words.
#[track_caller]
fn check(layers: &[&str], expected: &str) {
    let tars: Vec<_> = layers.iter().map(|words| layer(words)).collect();
    assert_eq!(merged(&tars).as_deref(), Ok(expected), "{layers:?}");
}

#[track_caller]
fn check_error(layers: &[&str], expected: &str) {
    let tars: Vec<_> = layers.iter().map(|words| layer(words)).collect();
    let error = merged(&tars).expect_err("an error");
    assert!(error.contains(expected), "{layers:?}: {error}");
}

#[test]
fn trap_1_a_whiteout_does_not_touch_its_own_layer() {
    check(&["a/ a/f=old", "a/.wh.f a/f=new"], "a/ a/f=new");
    check(&["a/ a/f=old", "a/f=new a/.wh.f"], "a/ a/f=new");
    check(&["d/ d/x=x", ".wh.d d/ d/z=z"], "d/ d/z=z");
    check(&["d/ d/x=x", "d/ d/z=z .wh.d"], "d/ d/z=z");
    check(&["d/ d/x=x", "d/z=z d/.wh..wh..opq"], "d/ d/z=z");
    check(&["d/ d/x=x", ".wh.d d/z=z"], "d/ d/z=z");
}

#[test]
fn trap_2_a_masked_file_seals_what_is_below() {
    check(&["p/ p/old=1", "p=file", "p/ p/new=2"], "p/ p/new=2");
    check(&["p/ p/old=1", ".wh.p", "p/ p/new=2"], "p/ p/new=2");
    check(&["p/ p/q/ p/q/old=1", "p/q=file", "p/q/new=2"], "p/ p/q/ p/q/new=2");
    check(&["p/ p/old=1", "p->elsewhere", "p/ p/new=2"], "p/ p/new=2");
}

#[test]
fn trap_3_an_implied_directory_takes_metadata_from_below_but_not_from_below_a_whiteout() {
    let lower = || tar(&[Member::directory("d").mode(0o1777).owner(5, 6).pax("SCHILY.xattr.user.k", "v")]);
    let mode_of_d = |tars: &[Vec<u8>]| {
        let (merged, _) = merge(tars, &ConvertOptions::default()).expect("merges");
        let (_, index) = walk(&merged.tree)[1];
        let inode = merged.tree.inodes[index as usize].clone();
        (inode.mode, inode.uid, inode.xattrs.len())
    };
    assert_eq!(mode_of_d(&[lower(), layer("d/x=1")]), (0o1777, 5, 1));
    assert_eq!(mode_of_d(&[lower(), layer("d/.wh..wh..opq d/x=1")]), (0o1777, 5, 1));
    assert_eq!(mode_of_d(&[lower(), layer(".wh.d d/x=1")]), (0o755, 0, 0));
    assert_eq!(mode_of_d(&[lower(), layer(".wh.d"), layer("d/x=1")]), (0o755, 0, 0));
    assert_eq!(mode_of_d(&[lower(), layer("d=file"), layer("d/x=1")]), (0o755, 0, 0));
    assert_eq!(
        mode_of_d(&[lower(), layer("d/"), layer("d/x=1")]),
        (0o755, 0, 0),
        "the topmost entry supplies all"
    );
}

#[test]
fn trap_4_links_keep_their_layer() {
    check(&["a=1 b=>a", "a=2"], "a=2 b=1");
    check(&["a=1 b=>a", ".wh.a"], "b=1");
    check(&["a=1 b=>a c=>b", "a=2 .wh.b"], "a=2 c=1");
    check(&["d/ d/a=1 b=>d/a", ".wh.d"], "b=1");
    check(&["a=1", "b=>a"], "a=1 b==a");
    check(&["a=1", "b=>a", "c=>b"], "a=1 b==a c==a");
    check(&["a=1", "b=>a .wh.a", "c=>b .wh.b"], "c=1");
    check(&["a=1", "a=2", "b=>a"], "a=2 b==a");
    check(&["a=1", "b=>a a=2"], "a=2 b=1");
    check(&["b=>a a=1"], "a=1 b==a");
    check(&["a=0", ".wh.a", "b=>a a=1"], "a=1 b==a");
    check_error(&["a=1", ".wh.a", "b=>a"], "hard link \"/b\" has no target: \"/a\" does not exist");
    check_error(&["d/ d/a=1", "d/.wh..wh..opq", "b=>d/a"], "\"/d/a\" does not exist");
    check_error(&["a/ a/x=1", "a=file", "b=>a/x"], "\"/a/x\" does not exist");
    check_error(&["b=>a"], "hard link \"/b\" has no target");
    check_error(&["b=>b"], "hard link \"/b\" has no target");
    check_error(&["b=>a a=>b"], "");
    check_error(&["a=>b b=>c c=>a"], "");
    check_error(&["d/ b=>d"], "leads to the directory");
    check_error(&["d/", "b=>d"], "leads to the directory");
    check_error(&["b=>/"], "leads to the directory");
    check_error(&["b=>../a"], "leaves the image");
}

#[test]
fn trap_5_link_targets_are_cleaned() {
    for target in ["a", "./a", "/a", "x/../a", "//a", "./x/.././a", "x/./../a"] {
        check(&[&format!("a=1 b=>{target}")], "a=1 b==a");
        check(&["a=1", &format!("b=>{target}")], "a=1 b==a");
    }
    check(&["real/ real/f=1 link->real h=>link/f"], "h=1 link->real real/ real/f==h");
    check(&["t=1 s->t h=>s"], "h->t s==h t=1");
}

#[test]
fn trap_6_opaque_hides_lower_children_only() {
    check(&["d/ d/a=1 d/b/ d/b/c=2", "d/ d/.wh..wh..opq d/n=3"], "d/ d/n=3");
    check(&["d/ d/a=1", "d/ d/n=3 d/.wh..wh..opq"], "d/ d/n=3");
    check(&["d/ d/a=1", "d/.wh..wh..opq"], "d/");
    check(&["d/ d/a=1", "d/.wh..wh..opq/"], "d/");
    check(&["a=1 d/ d/x=2", ".wh..wh..opq n=3"], "n=3");
    check(&["d/ d/a=1", "d/ d/.wh..wh..opq", "d/ d/b=2"], "d/ d/b=2");
    check(&["d/ d/a=1", "d/ d/b=2", "d/.wh..wh..opq"], "d/");
    check(&["d=file", "d/.wh..wh..opq"], "d=file");
    check(&["a=1", "none/.wh..wh..opq"], "a=1");
}

#[test]
fn trap_7_the_last_of_two_equal_names_wins() {
    check(&["a=1 a=2"], "a=2");
    check(&["a=1 a/ a/x=2"], "a/ a/x=2");
    check(&["a/ a/x=1 a=2"], "a=2");
    check(&["a/ a/x=1 a/"], "a/ a/x=1");
    check(&["a=1 b=>a a=2"], "a=2 b=1");
    check(&["a->x a=2"], "a=2");
}

#[test]
fn trap_8_symlinks_of_the_same_layer_are_followed_on_the_way() {
    check(&["x/ y->x z->y z/f=1"], "x/ x/f=1 y->x z->y");
    check(&["a/ a/l->/b l/x=1 a/l/f=2"], "a/ a/l->/b b/ b/f=2 l/ l/x=1");
    check(&["a/ a/l->../../../b a/l/f=2"], "a/ a/l->../../../b b/ b/f=2");
    check(&["l->missing/deep l/f=1"], "l->missing/deep missing/ missing/deep/ missing/deep/f=1");
    check(&["real/ real/r=1 link->real", "link/file=2"], "link/ link/file=2 real/ real/r=1");
    check(&["x/ x/f=0 y->x", "y->x x/ y/f=1"], "x/ x/f=1 y->x");
    check(&["link->real real/ real/x=1", "link/.wh.x"], "link->real real/ real/x=1");
    check_error(&["y->z z->y z/f=1"], "too many symbolic links");
    check_error(&["z->z z/f=1"], "too many symbolic links");
    check_error(&["p=1 p/x=2"], "\"/p\" is not a directory");
    check(&["p=1", "p/x=2"], "p/ p/x=2");
}

#[test]
fn trap_9_symlink_targets_are_data() {
    for target in ["/etc/../..//x", "../../../../etc/passwd", "/", ".", "a//b/", "\\"] {
        check(&[&format!("l->{target}")], &format!("l->{target}"));
    }
    let long = "t".repeat(100);
    check(&[&format!("l->{long}")], &format!("l->{long}"));
}

#[test]
fn trap_10_one_layer_at_two_places_is_applied_twice() {
    let (a, b) = ("f=1 d/ d/x=1", ".wh.f d/.wh.x");
    check(&[a, b], "d/");
    check(&[a, b, a], "d/ d/x=1 f=1");
    check(&[a, b, a, b], "d/");
}

#[test]
fn whiteouts_are_literal_and_need_no_parents() {
    check(&["a=1", "gone/deep/.wh.x"], "a=1");
    check(&["d/ d/e/ d/e/f=1", ".wh.d", "d/e/.wh.f"], "");
    check(&["p=file", "p/.wh.x"], "p=file");
    check(&["etc/ etc/x=1", ".wh.etc/file=2"], ".wh.etc/ .wh.etc/file=2 etc/ etc/x=1");
    check(&["a=1", ".wh.a/"], "");
    check(&["a=1", ".wh.a->x"], "");
    check(&["a=1", ".wh.a=content"], "");
    check(&["a=1 b=2", ".wh.a .wh.a"], "b=2");
    check(&["d/ d/a=1 d/b=2", "d/.wh.a", "d/.wh.b"], "d/");
    check(&["a=1", "a=2", "a=3", ".wh.a"], "");
    for name in [".wh.", ".wh..", ".wh...", "d/.wh.", "d/.wh.."] {
        check_error(&["a=1", name], "the whiteout names no file");
    }
}

#[test]
fn aufs_bookkeeping_is_no_part_of_the_image() {
    check(
        &[".wh..wh.aufs .wh..wh.orph/ .wh..wh.plnk/ .wh..wh.plnk/1.2=data a=1 h=>.wh..wh.plnk/1.2"],
        "a=1 h=data",
    );
    check(&[".wh..wh.plnk/ .wh..wh.plnk/1.2=data h=>.wh..wh.plnk/1.2 i=>.wh..wh.plnk/1.2"], "h=data i==h");
    check(&[".wh..wh.plnk/1.2=unused a=1"], "a=1");
}

#[test]
fn a_character_device_0_0_is_a_whiteout() {
    let device = Member { type_flag: b'3', ..Member::file("a", "") };
    assert_eq!(merged(&[layer("a=1 b=2"), tar(std::slice::from_ref(&device))]).as_deref(), Ok("b=2"));
    assert_eq!(merged(&[tar(&[device])]).as_deref(), Ok(""));
}

#[test]
fn entries_for_the_root_count_only_on_request() {
    let tars = [tar(&[Member::directory("./").mode(0o700).owner(7, 8)]), layer("a=1")];
    let root = |options: &ConvertOptions| {
        let (merged, _) = merge(&tars, options).expect("merges");
        let root = &merged.tree.inodes[merged.tree.root as usize];
        (root.mode, root.uid, root.gid)
    };
    assert_eq!(root(&ConvertOptions::default()), (0o755, 0, 0));
    assert_eq!(root(&ConvertOptions { root_meta: true, ..ConvertOptions::default() }), (0o700, 7, 8));
    check(&["/ a=1"], "a=1");
    check_error(&["/=x"], "the root of an image must be a directory");
    check_error(&["..->x"], "leaves the image");
}

#[test]
fn hostile_names_are_refused_or_kept_as_they_are() {
    for name in ["../x", "/../x", "a/../../x", "..", "a/../.."] {
        check_error(&[&format!("{name}=1")], "the path leaves the image");
    }
    check(&["a\\b=1 -rf=2 ~=3 *=4 $(id)=5"], "$(id)=5 *=4 -rf=2 a\\b=1 ~=3");
    let refuse = |member: Member, text: &str| {
        let error = merged(&[tar(std::slice::from_ref(&member))]).expect_err("refused");
        assert!(error.contains(text), "{error}");
    };
    refuse(Member::file("", ""), "the name is empty");
    refuse(
        Member::file("x", "").pax("path", "n".repeat(256)),
        "bytes in a component of a path exceed the limit of 255",
    );
    refuse(Member::file("x", "").pax("path", "n/".repeat(2100)), "bytes of a path exceed the limit of 4096");
    refuse(
        Member::file("x", "").pax("path", "n/".repeat(300)),
        "components of a path exceed the limit of 256",
    );
    refuse(Member::symlink("x", ""), "symbolic link is empty");
    refuse(Member::symlink("x", "t").pax("linkpath", "t".repeat(4096)), "exceeds 4095 bytes");
    let deep = "n/".repeat(250) + "f";
    assert!(merged(&[tar(&[Member::file("x", "1").pax("path", &deep)])]).is_ok());
}

#[test]
fn symlinks_cannot_build_an_endless_path() {
    let deep = "d/".repeat(200);
    let mut members = vec![Member::file("x", "").pax("path", format!("{deep}f"))];
    members.push(Member::symlink("l", &deep[..99]));
    members.push(Member::file("x", "").pax("path", format!("l/{}f", "e/".repeat(220))));
    let error = merged(&[tar(&members)]).expect_err("too deep");
    assert!(error.contains("components of a path exceed the limit of 256"), "{error}");
}

#[test]
fn memory_of_the_tree_is_bounded() {
    let budget = Budget { tree_bytes: 1 << 20, ..Budget::default() };
    let members: Vec<Member> = (0..20_000).map(|n| Member::file(format!("some-name-{n}"), "")).collect();
    let result = merge(&[tar(&members)], &ConvertOptions { budget, ..ConvertOptions::default() });
    let error = chain(&result.map(drop).expect_err("over budget"));
    assert!(error.contains("bytes of memory for names and inodes exceed the limit of 1048576"), "{error}");
    let budget = Budget { layers: 2, ..Budget::default() };
    let tars = [layer("a=1"), layer("a=1"), layer("a=1")];
    let result = merge(&tars, &ConvertOptions { budget, ..ConvertOptions::default() });
    assert!(
        chain(&result.map(drop).expect_err("over budget"))
            .contains("layers of the image exceed the limit of 2")
    );
}

#[test]
fn a_long_chain_of_forward_links_ends() {
    let count = 50_000;
    let mut members: Vec<Member> =
        (0..count).map(|n| Member::hard_link(format!("l{n}"), format!("l{}", n + 1))).collect();
    members.push(Member::file(format!("l{count}"), "data"));
    let (merged, _) = merge(&[tar(&members)], &ConvertOptions::default()).expect("merges");
    assert_eq!(merged.tree.inodes.len(), 2, "the root and one file with {count} names");
}

#[test]
fn file_data_of_hidden_files_is_not_stored() {
    let (_, sink) =
        merge(&[layer("a=lower b=keep d/ d/x=hidden"), layer("a=upper .wh.d")], &ConvertOptions::default())
            .expect("merges");
    assert_eq!(sink.files, [b"upper".to_vec(), b"keep".to_vec()]);
}

/// Stacks of every shape, the model against the merge. Each failure names the seed of its stack.
#[test]
fn generated_stacks_equal_the_bottom_up_model() {
    let first_seed = support::seed().saturating_mul(1_000_000);
    let (mut trees, mut errors) = (0, 0);
    for seed in first_seed..first_seed.saturating_add(20_000) {
        let stack = model::generate(&mut Random::new(seed), model::Shape::Any);
        let tars: Vec<_> = stack.iter().map(|words| layer(&words.join(" "))).collect();
        let expected = model::merge(&stack);
        let got = merged(&tars);
        match (&expected, &got) {
            (Ok(expected), Ok(got)) if expected == got => trees += 1,
            (Err(_), Err(_)) => errors += 1,
            _ => panic!("seed {seed}: {stack:#?}\nmodel: {expected:?}\nmerge: {got:?}"),
        }
    }
    assert!(trees > 5_000 && errors > 500, "{trees} trees and {errors} errors are no good mixture");
}

/// Hash tables keyed at random must not show: the same inodes in the same order, the same files.
#[test]
fn generated_stacks_are_deterministic() {
    let first_seed = support::seed().wrapping_mul(1000);
    for seed in (0..200).map(|number| first_seed.wrapping_add(number)) {
        let stack = model::generate(&mut Random::new(seed), model::Shape::Any);
        let tars: Vec<_> = stack.iter().map(|words| layer(&words.join(" "))).collect();
        let twice = [0, 1].map(|_| {
            merge(&tars, &ConvertOptions::default())
                .map(|(merged, sink)| (merged.tree.inodes, sink.files))
                .ok()
        });
        assert_eq!(twice[0], twice[1], "seed {seed}");
    }
}

/// The same through the whole conversion and `umoci unpack`, for stacks on which runtimes agree.
#[test]
fn generated_stacks_equal_umoci() {
    let scratch = support::scratch();
    let mut trees = 0;
    let first_seed = support::seed().wrapping_sub(1).wrapping_mul(40);
    for seed in (1..=40).map(|number| first_seed.wrapping_add(number)) {
        let stack = model::generate(&mut Random::new(seed), model::Shape::Conservative);
        let tars: Vec<_> = stack.iter().map(|words| layer(&words.join(" "))).collect();
        let dir = scratch.path().join(seed.to_string());
        let theirs = crate::convert::umoci_unpack(&dir, &tars);
        let ours = crate::convert::convert_and_unsquash(&dir, &tars);
        match (ours, theirs) {
            (Ok(ours), Some(theirs)) => {
                let (ours, theirs) = (crate::convert::list(&ours), crate::convert::list(&theirs));
                assert_eq!(ours, theirs, "seed {seed}: {stack:#?}");
                trees += 1;
            }
            (Err(_), None) => {}
            (ours, theirs) => panic!("seed {seed}: {stack:#?}\nours {ours:?}\numoci {theirs:?}"),
        }
    }
    assert!(trees >= 30, "only {trees} of 40 stacks made a tree");
}

//! What a job is shown of its mounts, and that every protection is in force.

use std::fs;
use std::process::Command;

use serde_json::Value;

use super::{exec, exec_with, tools};
use crate::busybox_image::image;
use crate::support::{as_user, hpcrun, scratch, stdout};

/// The mount table of a job: mount point, type, source, root within its file system, options.
fn table(options: &[&str]) -> Vec<[String; 5]> {
    let text = stdout(&mut exec_with(options, &["cat", "/proc/self/mountinfo"]));
    let parse = |line: &str| {
        let (mount, filesystem) = line.split_once(" - ").expect("a separator");
        let mount: Vec<&str> = mount.split(' ').collect();
        let filesystem: Vec<&str> = filesystem.split(' ').collect();
        [mount[4], filesystem[0], filesystem[1], mount[3], mount[5]].map(str::to_owned)
    };
    text.lines().map(parse).collect()
}

#[test]
fn the_mount_table_shows_image_and_binds_and_nothing_else() {
    let dir = scratch();
    fs::create_dir(dir.path().join("a b")).expect("mkdir");
    let bind = format!("{}/a b:/x y:ro", dir.path().display());
    let table = table(&["--bind", &bind]);
    let roots: Vec<_> = table.iter().filter(|mount| mount[0] == "/").collect();
    assert_eq!(roots.len(), 1, "{table:#?}");
    assert_eq!(roots[0][1], "fuse.hpcrun");
    assert_eq!(roots[0][2], image().display().to_string());
    let bound = table.iter().find(|mount| mount[0] == "/x\\040y").expect("the bind");
    assert!(bound[3].ends_with("/a\\040b") && bound[4].split(',').any(|option| option == "ro"), "{bound:?}");
    let within = |point: &str, top: &str| point == top || point.starts_with(&format!("{top}/"));
    let home = stdout(as_user("sh").args(["-c", "echo $HOME"]));
    let expected = [
        "/dev",
        "/proc",
        "/sys",
        "/tmp",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
        home.trim(),
        "/x\\040y",
    ];
    for mount in &table {
        let known = mount[0] == "/" || expected.iter().any(|top| within(&mount[0], top));
        assert!(known, "a mount that nobody asked for: {mount:?}");
        for part in mount {
            assert!(!part.contains("deleted") && !part.contains("//"), "{mount:?}");
        }
    }
}

#[test]
fn findmnt_df_and_mount_make_sense_of_it() {
    let run_tool = |words: &[&str]| {
        let mut command = hpcrun(["exec", "--bind", "/usr:/usr:ro"]);
        stdout(command.arg(tools()).args(words))
    };
    let found: Value =
        serde_json::from_str(&run_tool(&["findmnt", "--json", "-o", "target,source,fstype,options", "/"]))
            .expect("JSON");
    let root = &found["filesystems"][0];
    assert_eq!(root["fstype"], "fuse.hpcrun");
    assert_eq!(root["source"], tools().display().to_string());
    let options = root["options"].as_str().expect("options");
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|found| found == option), "no {option} in {options}");
    }
    // The whole tree hangs together.
    let tree = run_tool(&["findmnt", "--list", "--noheadings", "-o", "target"]);
    assert!(tree.lines().any(|line| line == "/usr") && tree.lines().any(|line| line == "/dev/shm"), "{tree}");
    let shown = run_tool(&["df", "--output=source,fstype,avail,pcent,target", "/"]);
    let line: Vec<&str> = shown.lines().nth(1).expect("a line").split_whitespace().collect();
    assert_eq!(line, [&tools().display().to_string(), "fuse.hpcrun", "0", "100%", "/"]);
    let mounted = run_tool(&["mount"]);
    assert!(
        mounted.contains(&format!("{} on / type fuse.hpcrun (ro,nosuid,nodev", tools().display())),
        "{mounted}"
    );
    // Sizes are the image's.
    let superblock = stdout(Command::new("unsquashfs").arg("-s").arg(tools()));
    let inodes = superblock.lines().find_map(|line| line.strip_prefix("Number of inodes ")).expect("inodes");
    let sizes = run_tool(&["stat", "-f", "-c", "%b %S %f %a %c %d %l", "/"]);
    let fields: Vec<u64> = sizes.split_whitespace().map(|field| field.parse().expect("a number")).collect();
    let length = fs::metadata(tools()).expect("metadata").len();
    let size = fields[0] * fields[1];
    assert!(size <= length + fields[1] && size + (64 << 10) + fields[1] >= length, "{sizes} of {length}");
    assert_eq!(&fields[2..4], [0, 0], "{sizes}");
    assert_eq!(fields[4].to_string(), inodes, "{sizes}");
    assert_eq!((fields[5], fields[6]), (0, 256), "{sizes}");
}

#[test]
fn row_36_of_the_peers_every_protection_is_in_force() {
    let status = stdout(&mut exec(&["cat", "/proc/self/status"]));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000\n")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    let has = |options: &str, flag: &str| options.split(',').any(|option| option == flag);
    let table = table(&["--bind", "/usr:/u:ro"]);
    let at = |point: &str| {
        &table.iter().rfind(|mount| mount[0] == point).unwrap_or_else(|| panic!("no {point}"))[4]
    };
    for flag in ["ro", "nosuid", "nodev"] {
        assert!(has(at("/"), flag), "{flag}");
    }
    assert!(has(at("/u"), "ro"));
    // What the host's mounts forbid stays forbidden.
    let host = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    for point in ["/dev/shm", "/proc", "/sys", "/dev/pts"] {
        let Some(line) = host.lines().rfind(|line| line.split(' ').nth(4) == Some(point)) else { continue };
        let options = line.split(' ').nth(5).expect("options");
        for flag in ["ro", "nosuid", "nodev", "noexec"] {
            assert!(!has(options, flag) || has(at(point), flag), "{point} lost {flag}");
        }
    }
    // No way to more: neither by a set-id program nor by a mount.
    let script = "/bin/busybox mount -t tmpfs none /tmp 2>/dev/null || echo no mount; cat /proc/self/setgroups; cat /proc/self/uid_map";
    let shown = stdout(&mut exec(&["sh", "-c", script]));
    let words: Vec<&str> = shown.split_whitespace().collect();
    let uid = stdout(as_user("id").arg("-u"));
    assert_eq!(words, ["no", "mount", "deny", uid.trim(), uid.trim(), "1"]);
}

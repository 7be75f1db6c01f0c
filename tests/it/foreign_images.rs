//! Images that other tools made: every codec and option of mksquashfs, and what Apptainer, Singularity 2, Charliecloud
//! and enroot write. Read as the kernel reads them, and run as their makers would.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::busybox_image::assert_fails;
use crate::sources::trees::SifBuilder;
use crate::squashfs_reader::{
    assert_equal, check_against_kernel, make_image, make_image_of, open, read_tree, source_tree,
};
use crate::support::{hpcrun, run, scratch, stdout, text};

#[test]
fn every_option_of_mksquashfs_reads_as_the_kernel_does() {
    let _source = source_tree();
    for options in [
        "-comp lzo -Xalgorithm lzo1x_1 -b 1M -always-use-fragments",
        // As podman-hpc packs.
        "-comp lzo -noD -all-root",
        "-comp gzip -Xstrategy filtered,huffman_only,run_length_encoded,fixed -Xwindow-size 8 -b 1M",
        "-comp gzip -noId -no-exports -no-tailends",
        "-comp xz -Xdict-size 100% -b 1M",
        "-comp xz -noF -noX -root-mode 700 -root-uid 77 -force-gid 78",
        "-comp zstd -Xcompression-level 10 -b 1M -tailends -noI",
    ] {
        let (_dir, image) = make_image(options);
        check_against_kernel(&image, options);
    }
}

/// What this kernel may lack: its tree is that of the same source in gzip. The filters for machine code are a kernel's
/// option each, and are tried on a program, so that mksquashfs finds blocks that they shrink.
#[test]
fn what_kernels_lack_reads_as_gzip_does() {
    let dir = scratch();
    fs::copy("/bin/busybox", dir.path().join("busybox")).unwrap();
    for options in [
        "-comp xz -Xbcj x86 -b 1M",
        "-comp xz -Xbcj arm -noF",
        "-comp xz -Xbcj x86,arm,armthumb,powerpc,sparc,ia64 -Xdict-size 50%",
        "-comp lzma",
        "-comp lzma -b 1M -no-fragments",
    ] {
        let (_image, image) = make_image_of(dir.path(), options);
        let (_other, expected) = make_image_of(dir.path(), "-comp gzip");
        assert_equal(&read_tree(&open(&image)), &read_tree(&open(&expected)), options);
    }
}

/// 20,000 owners, so that the table of ids fills several blocks.
#[test]
fn many_owners() {
    let dir = scratch();
    let mut builder = tar::Builder::new(Vec::new());
    for id in 0..20_000_u64 {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(0);
        header.set_uid(id);
        header.set_gid(100_000 + id);
        builder.append_data(&mut header, format!("{}/{id}", id % 64), &b""[..]).unwrap();
    }
    let (archive, image) = (dir.path().join("owners.tar"), dir.path().join("owners.sqsh"));
    fs::write(&archive, builder.into_inner().unwrap()).unwrap();
    for writer in ["sqfstar -quiet -no-progress -comp lz4", "sqfstar -quiet -no-progress -noI"] {
        let line = format!("{writer} {} < {}", image.display(), archive.display());
        stdout(Command::new("sh").args(["-c", &line]));
        check_against_kernel(&image, writer);
        fs::remove_file(&image).unwrap();
    }
}

/// A root file system that can run, and the files given. Programs are of busybox.
fn rootfs(dir: &Path, files: &[(&str, &str)]) -> PathBuf {
    let root = dir.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).unwrap();
    }
    for folder in ["bin", "tmp", "etc", "work dir"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "echo", "env", "find", "sha256sum", "sort", "xargs", "pwd"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    for (path, content) in files {
        let path = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    root
}

/// Through the server, as the job sees it: every codec, with the smallest and the largest blocks.
#[test]
fn every_codec_is_served() {
    let dir = scratch();
    let root = rootfs(dir.path(), &[("/data/empty", "")]);
    let random: Vec<u8> = (0..3_000_001_u64).map(|at| (at.wrapping_mul(at) >> 7) as u8).collect();
    fs::write(root.join("data/large"), random).unwrap();
    let sums = "find bin data -type f | sort | xargs sha256sum";
    let expected = stdout(Command::new("sh").args(["-c", sums]).current_dir(&root));
    for options in [
        "-comp gzip -b 4K",
        "-comp gzip -b 1M",
        "-comp lz4 -b 1M",
        "-comp xz -b 1M -Xbcj x86",
        "-comp zstd -Xcompression-level 1 -b 1M -no-exports -no-fragments",
        "-comp lzo -b 1M -noI",
        "-comp lzma",
    ] {
        let (_image, image) = make_image_of(&root, options);
        let served = stdout(hpcrun(["exec"]).arg(&image).args(["sh", "-c", &format!("cd / && {sums}")]));
        assert_eq!(served, expected, "{options}");
    }
}

fn pack(root: &Path, image: &Path) -> Vec<u8> {
    let options = ["-noappend", "-quiet", "-no-progress", "-all-root", "-comp", "gzip"];
    stdout(Command::new("mksquashfs").arg(root).arg(image).args(options));
    fs::read(image).unwrap()
}

fn inspected(image: &Path) -> Value {
    serde_json::from_str(&stdout(hpcrun(["inspect", "--json"]).arg(image))).unwrap()
}

/// What an image makes of an environment that sets nothing but what is needed.
fn environment(image: &Path) -> Vec<String> {
    let all = stdout(hpcrun(["exec", "--cleanenv"]).arg(image).arg("env"));
    all.lines().map(str::to_owned).collect()
}

/// The start of what Apptainer 1.4.5 writes as runscript of a docker image.
const GENERATED: &str =
    "#!/bin/sh\nOCI_ENTRYPOINT='\"/bin/echo\" \"entry point\"'\nOCI_CMD='\"cmd\"'\neval \"echo wrong\"\n";
const ACTIONS: [(&str, &str); 2] = [
    (
        "/.singularity.d/actions/exec",
        "#!/bin/sh\nfor script in /.singularity.d/env/*.sh; do . $script; done\nexec \"$@\"\n",
    ),
    (
        "/.singularity.d/actions/run",
        "#!/bin/sh\nfor script in /.singularity.d/env/*.sh; do . $script; done\nexec /.singularity.d/runscript \"$@\"\n",
    ),
];
/// As Apptainer stores it: the member `config` alone.
const OCI_CONFIG: &str = r#"{"Cmd":["cmd"],"Entrypoint":["/bin/echo","entry point"],"Env":["PATH=/bin:/opt/x","A=$HOME \"q\""],
    "Labels":{"from":"docker"},"WorkingDir":"/work dir"}"#;
const METADATA: &str = r#"{"data":{"attributes":{"labels":{"from":"docker","org.label-schema.build-arch":"amd64"}}},"type":"container"}"#;

/// A SIF laid out as Apptainer 1.4.5 does: definition, metadata, OCI config, partition; and what users expect of it.
#[test]
fn a_sif_of_a_docker_image_runs_as_the_image_would() {
    let dir = scratch();
    let (sif, image) = (dir.path().join("app.sif"), dir.path().join("app.sqsh"));
    let files = [
        ("/.singularity.d/runscript", GENERATED),
        ("/.singularity.d/env/90-environment.sh", "#!/bin/sh\n# none\n"),
    ];
    let squashfs = pack(&rootfs(dir.path(), &files), &dir.path().join("root.sqsh"));
    SifBuilder::new()
        .object(0x4001, "", b"bootstrap: docker\n")
        .object(0x4006, "inspect-metadata.json", METADATA.as_bytes())
        .object(0x4006, "oci-config.json", OCI_CONFIG.as_bytes())
        .partition(1, 2, &squashfs)
        .object(0x4005, "part-signature", b"-----BEGIN PGP SIGNED MESSAGE-----")
        .write(&sif);
    stdout(hpcrun(["convert", &format!("sif:{}", sif.display())]).arg(&image));
    for file in [&sif, &image] {
        assert_eq!(stdout(hpcrun(["run"]).arg(file)), "entry point cmd\n");
        assert_eq!(stdout(hpcrun(["run"]).arg(file).args(["$x", "b c"])), "entry point $x b c\n");
        assert_eq!(stdout(hpcrun(["exec"]).arg(file).args(["sh", "-c", "echo \"$A\""])), "$HOME \"q\"\n");
        let config = &inspected(file)["config"]["config"];
        assert_eq!(config["Labels"], json!({"from": "docker", "org.label-schema.build-arch": "amd64"}));
        assert_eq!(config["WorkingDir"], "/work dir");
    }
    let shown = stdout(hpcrun(["inspect"]).arg(&sif));
    assert!(
        shown.contains("this is a SIF") && shown.contains("signed") && !shown.contains("note"),
        "{shown}"
    );
}

#[test]
fn a_sif_of_a_definition_file_runs_its_scripts() {
    let dir = scratch();
    let (sif, image) = (dir.path().join("app.sif"), dir.path().join("app.sqsh"));
    let set = "#!/bin/sh\nexport ROOT=/opt/app PATH=/opt/app/bin:$PATH\n";
    let sif_of = |environment: &str| {
        let environment = format!("{set}{environment}");
        let mut files = vec![
            ("/.singularity.d/runscript", "#!/bin/sh\necho \"mine $* $ROOT $N\"\n"),
            ("/.singularity.d/env/90-environment.sh", &environment),
        ];
        files.extend(ACTIONS);
        let squashfs = pack(&rootfs(dir.path(), &files), &dir.path().join("root.sqsh"));
        SifBuilder::new()
            .object(0x4006, "oci-config.json", OCI_CONFIG.as_bytes())
            .partition(1, 2, &squashfs)
            .write(&sif);
        let source = format!("sif:{}", sif.display());
        text(&run(hpcrun(["convert", "--force", &source]).arg(&image)).stderr)
    };
    let said = sif_of("");
    assert!(!said.contains("warning"), "{said}");
    for file in [&sif, &image] {
        assert_eq!(stdout(hpcrun(["run"]).arg(file).args(["a", "b"])), "mine a b /opt/app \n");
        let environment = environment(file);
        assert!(environment.contains(&"PATH=/opt/app/bin:/bin:/opt/x".to_owned()), "{environment:?}");
    }
    // A line for a shell: named, left out of `exec`, and run by the image's own scripts for `run`.
    let said = sif_of("export N=$(echo 1)2\n");
    assert!(said.contains("90-environment.sh, line 3: export N=$(echo 1)2 (to run them: "), "{said}");
    for file in [&sif, &image] {
        assert_eq!(stdout(hpcrun(["run"]).arg(file).arg("a")), "mine a /opt/app 12\n");
        assert!(!environment(file).iter().any(|entry| entry.starts_with("N=")));
        let command = ["/.singularity.d/actions/exec", "env"];
        assert!(stdout(hpcrun(["exec"]).arg(file).args(command)).contains("\nN=12\n"));
    }
    let output = run(hpcrun(["exec"]).arg(&sif).arg("pwd"));
    assert!(output.status.success() && text(&output.stderr).contains("line 3"), "{}", text(&output.stderr));
    assert!(stdout(hpcrun(["inspect"]).arg(&sif)).contains("note        not all that the image's scripts"));
}

#[test]
fn an_overlay_in_a_sif_is_not_used_and_that_is_said() {
    let dir = scratch();
    let sif = dir.path().join("app.sif");
    let squashfs = pack(&rootfs(dir.path(), &[]), &dir.path().join("root.sqsh"));
    SifBuilder::new().partition(1, 2, &squashfs).partition(2, 4, b"an ext3").write(&sif);
    let output = run(hpcrun(["exec"]).arg(&sif).args(["echo", "served"]));
    let said = text(&output.stderr);
    assert!(output.stdout == b"served\n" && said.contains("overlay partition, which is not used"), "{said}");
    // Two file systems, neither of which is the root's; and one that gocryptfs encrypted.
    SifBuilder::new().partition(1, 3, &squashfs).partition(2, 4, b"an ext3").write(&sif);
    assert_fails(&run(hpcrun(["exec"]).arg(&sif).arg("true")), 125, &["no primary system partition"]);
    SifBuilder::new().partition(6, 2, &squashfs).write(&sif);
    assert_fails(
        &run(hpcrun(["exec"]).arg(&sif).arg("true")),
        125,
        &["an encrypted squashfs", "hint: decrypt it"],
    );
}

/// An image of Singularity 2: a squashfs behind a line that makes it a program.
#[test]
fn an_image_of_singularity_2_runs() {
    let dir = scratch();
    let (old, image) = (dir.path().join("old.simg"), dir.path().join("old.sqsh"));
    let docker = "#!/bin/sh\nexport PATH=\"/bin:/opt/x\"\nexport A=\"a b\"\n";
    let files = [
        ("/.singularity.d/runscript", "#!/bin/sh\necho old \"$A\" \"$@\"\n"),
        ("/.singularity.d/env/10-docker2singularity.sh", docker),
        ("/.singularity.d/labels.json", r#"{"l": "v"}"#),
    ];
    let squashfs = pack(&rootfs(dir.path(), &files), &dir.path().join("root.sqsh"));
    fs::write(&old, [b"#!/usr/bin/env run-singularity\n", squashfs.as_slice()].concat()).unwrap();
    stdout(hpcrun(["convert", &format!("squashfs:{}", old.display())]).arg(&image));
    for file in [&old, &image] {
        assert_eq!(stdout(hpcrun(["run"]).arg(file).arg("x")), "old a b x\n");
        assert_eq!(inspected(file)["config"]["config"]["Labels"], json!({"l": "v"}));
    }
    let exports = [&old, &image].map(|file| run(hpcrun(["export"]).arg(file)).stdout);
    assert!(exports[0] == exports[1] && exports[0].len() > 100_000);
}

#[test]
fn images_of_charliecloud_and_enroot_have_their_config() {
    let dir = scratch();
    let image = dir.path().join("app.sqsh");
    let metadata = json!({"arch": "amd64", "cwd": "/work dir", "cmd": ["from", "cmd"], "entrypoint": ["/bin/echo"],
        "env": {"A": "a b", "PATH": "/bin"}, "labels": {"l": "v"}, "shell": ["/bin/sh", "-c"], "volumes": []});
    let metadata = metadata.to_string();
    let files = [("/ch/metadata.json", metadata.as_str()), ("/ch/environment", "A=a b\nPATH=/bin\n")];
    pack(&rootfs(dir.path(), &files), &image);
    assert_eq!(stdout(hpcrun(["run"]).arg(&image)), "from cmd\n");
    assert!(environment(&image).contains(&"A=a b".to_owned()));
    assert!(stdout(hpcrun(["inspect"]).arg(&image)).contains("what follows is in files of Charliecloud"));

    let rc = "# org.example.name it\n\nmkdir -p \"/work dir\" 2> /dev/null\ncd \"/work dir\" && unset OLDPWD || exit 1\n\n\
        if [ -s /etc/rc.local ]; then\n    . /etc/rc.local\nfi\n\nif [ $# -gt 0 ]; then\n    exec '/bin/echo' \"$@\"\n\
        else\n    exec '/bin/echo' 'from' 'rc'\nfi\n";
    let other = scratch();
    let files = [("/etc/rc", rc), ("/etc/rc.local", "pwd\n"), ("/etc/environment", "PATH=/bin\nA=$x 'y'\n")];
    fs::remove_file(&image).unwrap();
    pack(&rootfs(other.path(), &files), &image);
    assert_eq!(stdout(hpcrun(["run"]).arg(&image)), "/work dir\nfrom rc\n");
    assert_eq!(stdout(hpcrun(["run"]).arg(&image).arg("x")), "/work dir\nx\n");
    assert!(environment(&image).contains(&"A=$x 'y'".to_owned()));
    assert_eq!(inspected(&image)["config"]["config"]["Labels"], json!({"org.example.name": "it"}));
}

/// A squashfs of nobody's: nothing to `run`, all the rest works.
#[test]
fn a_bare_squashfs_has_no_config() {
    let dir = scratch();
    let image = dir.path().join("app.sqsh");
    pack(&rootfs(dir.path(), &[]), &image);
    assert_eq!(stdout(hpcrun(["exec"]).arg(&image).args(["echo", "a"])), "a\n");
    assert_fails(&run(hpcrun(["run"]).arg(&image)), 125, &["nothing to run"]);
    assert!(
        stdout(hpcrun(["inspect"]).arg(&image)).contains("unknown: this squashfs has no hpcrun trailer\n")
    );
}

#[test]
fn other_files_are_named() {
    let dir = scratch();
    let file = dir.path().join("file");
    for (start, expected) in [
        (&b"\x7fELF\x02\x01\x01\0AI\x02"[..], "an ELF program"),
        (b"\x1f\x8b\x08\0", "gzip data"),
        (b"\xfd7zXZ\0", "xz data"),
        (b"\x28\xb5\x2f\xfd", "zstd data"),
        (b"#!/bin/sh\n", "a script"),
        (b"sqsh", "a big-endian squashfs"),
        (b"nonsense", "magic number is 0x736e6f6e, not"),
    ] {
        fs::write(&file, [start, &[0; 500]].concat()).unwrap();
        assert_fails(
            &run(hpcrun(["exec"]).arg(&file).arg("true")),
            125,
            &[expected, "hint: an image file is"],
        );
    }
}

//! The image server against the kernel's own squashfs, under load, while it is being killed, and after its job.
//!
//! Each test starts this test binary again as an ordinary user in a user namespace of its own; there [`driver`] mounts
//! an image as the launcher does and runs a shell script on it.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test that cannot get what it needs fails"
)]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hpcrun::mount::graft::{Graft, Grafts};
use hpcrun::mount::server::{self, ServerOptions, Startup};
use hpcrun::squashfs::reader::{Filesystem, ReaderOptions};
use hpcrun::sys;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;

use crate::support::{Random, TEST_USER, as_user, is_root, run, scratch, stdout, text};

/// What an INIT without `FUSE_HAS_RESEND` looks like: a kernel before 6.9.
pub(crate) const WITHOUT_RESEND: u64 = 1 << 39;
/// A kernel of 4.18: no flag newer than `FUSE_PARALLEL_DIROPS`.
const OLD_KERNEL: u64 = !((1 << 19) - 1);
/// Serving threads.
const THREADS: usize = 4;
/// For how long the driver lets files be stored.
const STORING: Duration = Duration::from_millis(100);

// ---------------------------------------------------------------------------------------------------------------------
// The driver: what the launcher will do, and a script instead of a job.

/// Mounts an image and runs a script on it. Not a test: the others start it with its orders in the environment.
#[test]
#[ignore = "started by the other tests of this module"]
fn driver() {
    let order = |name: &str| std::env::var(format!("HPCRUN_DRIVER_{name}")).expect("an order of the driver");
    let image = fs::File::open(order("IMAGE")).expect("image");
    let image = Filesystem::open(image, 0, ReaderOptions::default()).expect("squashfs");
    let mut grafts = Grafts::default();
    for line in order("GRAFTS").lines() {
        let (graft, path) = parse_graft(line);
        let resolved = grafts.add(&image, path.as_bytes(), graft).expect("graft");
        assert!(resolved.starts_with(b"/"));
    }
    let fuse = sys::fuse::open_device().expect("device");
    let masked = order("MASKED").parse().expect("flags");
    let options = ServerOptions { threads: THREADS, startup: Startup::Nothing, maker: None, ahead: true };
    let waiting = server::start_masked(image, grafts, &fuse, options, masked).expect("start");
    if order("SCRIPT") == "drop" {
        drop(waiting);
        sys::process::exit_now(0);
    }
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).expect("mount namespace");
    let (uid, gid) = (nix::unistd::getuid().as_raw(), nix::unistd::getgid().as_raw());
    let data = server::mount_data(std::os::fd::AsFd::as_fd(&fuse), uid, gid);
    let root = PathBuf::from(order("ROOT"));
    let slave = MsFlags::MS_SLAVE | MsFlags::MS_REC;
    mount(None::<&str>, "/", None::<&str>, slave, None::<&str>).expect("slave");
    mount(Some("hpcrun"), &root, Some("fuse"), server::MOUNT_FLAGS, Some(data.as_str())).expect("mount");
    let launching = waiting.mounted().expect("server");
    drop(fuse);
    if !order("STORED").is_empty() {
        for name in order("STORED").split_whitespace() {
            fs::metadata(root.join(name)).expect("a file to be stored");
        }
        launching.let_store().expect("turn");
        std::thread::sleep(STORING);
        launching.end_storing().expect("turn");
    }
    // To the script the launch is over.
    drop(launching);
    for line in order("BINDS").lines() {
        let (source, destination) = line.split_once(' ').expect("a bind");
        let destination = root.join(destination.trim_start_matches('/'));
        mount(Some(source), &destination, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
    }
    let status =
        Command::new("/bin/bash").args(["-c", &order("SCRIPT")]).current_dir(&root).status().expect("script");
    sys::process::exit_now(status.code().unwrap_or(99));
}

/// `dir PATH`, `file PATH`, `content PATH TEXT` or `link PATH TARGET`.
fn parse_graft(line: &str) -> (Graft, &str) {
    let words: Vec<&str> = line.splitn(3, ' ').collect();
    match words[..] {
        ["dir", path] => (Graft::Directory, path),
        ["file", path] => (Graft::File, path),
        ["content", path, content] => {
            (Graft::Content { mode: 0o644, content: content.as_bytes().into() }, path)
        }
        ["link", path, target] => (Graft::Symlink(target.into()), path),
        _ => panic!("graft order {line:?}"),
    }
}

/// An image and what to do with it.
struct Service {
    dir: tempfile::TempDir,
    grafts: String,
    binds: String,
    masked: u64,
    /// Files that go into the page cache before the script starts.
    stored: &'static str,
    /// What starts the driver, before `unshare`.
    wrapper: Vec<String>,
    /// Process groups of the scripts, each led by its driver.
    drivers: std::cell::RefCell<Vec<u32>>,
}

/// A test that fails leaves no script behind.
impl Drop for Service {
    fn drop(&mut self) {
        for group in self.drivers.borrow().iter() {
            run(Command::new("kill").args(["-KILL", "--", &format!("-{group}")]));
        }
    }
}

impl Service {
    /// A service of a copy of the test image.
    fn new() -> Service {
        Service::of(test_image())
    }

    fn of(image: &Path) -> Service {
        let dir = scratch();
        fs::create_dir(dir.path().join("root")).expect("mount point");
        fs::copy(image, dir.path().join("image.sqsh")).expect("copy of the image");
        fs::set_permissions(dir.path().join("image.sqsh"), PermissionsExt::from_mode(0o666)).expect("chmod");
        Service {
            dir,
            grafts: String::new(),
            binds: String::new(),
            masked: 0,
            stored: "",
            wrapper: Vec::new(),
            drivers: std::cell::RefCell::default(),
        }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image.sqsh")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// Starts the driver as the ordinary user. The script runs in the root of the image, with its scratch directory
    /// as `$D`.
    fn start(&self, script: &str) -> Child {
        let mut words: Vec<std::ffi::OsString> = self.wrapper.iter().map(Into::into).collect();
        words.extend(["unshare", "--user", "--map-current-user", "--keep-caps", "--"].map(Into::into));
        words.push(test_binary().into());
        words.extend(
            ["image_server::driver", "--exact", "--ignored", "--nocapture", "--test-threads=1"]
                .map(Into::into),
        );
        let errors = fs::File::create(self.dir.path().join("driver.err")).expect("file");
        as_user(&words[0])
            .args(&words[1..])
            .env("HPCRUN_DRIVER_IMAGE", self.image())
            .env("HPCRUN_DRIVER_ROOT", self.root())
            .env("HPCRUN_DRIVER_GRAFTS", &self.grafts)
            .env("HPCRUN_DRIVER_BINDS", &self.binds)
            .env("HPCRUN_DRIVER_STORED", self.stored)
            .env("HPCRUN_DRIVER_MASKED", self.masked.to_string())
            .env("HPCRUN_DRIVER_SCRIPT", script)
            .env("D", self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .process_group(0)
            .spawn()
            .inspect(|driver| self.drivers.borrow_mut().push(driver.id()))
            .expect("driver")
    }

    /// Waits for the end of a script that must succeed, and for everything it leaves behind to be gone.
    #[track_caller]
    fn finish(&self, mut driver: Child) {
        let status = driver.wait().expect("driver");
        let errors = fs::read(self.dir.path().join("driver.err")).expect("errors");
        assert!(status.success(), "driver: {status}\n{}", text(&errors));
        self.check_gone();
    }

    /// Runs a script to its end; gives what it printed.
    #[track_caller]
    fn run(&self, script: &str) -> String {
        self.finish(self.start(&format!("exec >$D/out 2>$D/err\n{script}")));
        assert_eq!(self.file("err"), "", "standard error of {script}");
        self.file("out")
    }

    /// A file of the scratch directory.
    fn file(&self, name: &str) -> String {
        text(&fs::read(self.dir.path().join(name)).unwrap_or_default())
    }

    #[track_caller]
    fn await_file(&self, name: &str) {
        let path = self.dir.path().join(name);
        let begun = Instant::now();
        while !path.exists() {
            let errors = self.file("driver.err") + &self.file("err");
            assert!(begun.elapsed() < Duration::from_secs(30), "no file {name}: {errors}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn tell(&self, name: &str) {
        fs::write(self.dir.path().join(name), "").expect("file");
    }

    /// Processes called `name` that have this image open.
    fn helpers(&self, name: &str) -> Vec<i32> {
        let image = self.image();
        let has_image = |pid: i32| {
            fs::read_dir(format!("/proc/{pid}/fd"))
                .is_ok_and(|fds| fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == image)))
        };
        processes()
            .into_iter()
            .filter(|(pid, comm)| comm == name && has_image(*pid))
            .map(|(pid, _)| pid)
            .collect()
    }

    fn server(&self) -> Option<i32> {
        self.helpers("hpcrun-server").first().copied()
    }

    #[track_caller]
    fn helper(&self, name: &str) -> i32 {
        let pids = self.helpers(name);
        assert_eq!(pids.len(), 1, "processes {name}");
        pids[0]
    }

    /// Keeper and server end within a second of the last user of the mount.
    #[track_caller]
    fn check_gone(&self) {
        let begun = Instant::now();
        loop {
            let left = ["hpcrun-keeper", "hpcrun-server", "hpcrun-ahead"].map(|name| self.helpers(name));
            if left.iter().all(Vec::is_empty) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(1), "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Process ids and names.
fn processes() -> Vec<(i32, String)> {
    let entries = fs::read_dir("/proc").expect("proc").flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
            Some((pid, comm.trim_end().to_owned()))
        })
        .collect()
}

/// This test binary where the ordinary user can reach it.
fn test_binary() -> &'static Path {
    static COPY: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = COPY.get_or_init(|| {
        let dir = scratch();
        let path = dir.path().join("it");
        fs::copy(std::env::current_exe().expect("own path"), &path).expect("copy");
        (dir, path)
    });
    path
}

/// An image with one of everything, made by mksquashfs.
fn test_image() -> &'static Path {
    static IMAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    assert!(is_root(), "these tests make device nodes and mount with the kernel: run them as root");
    let (_, path) = IMAGE.get_or_init(|| {
        let dir = scratch();
        let script = format!(
            r#"set -e; umask 022; mkdir tree; cd tree
            mkdir -p bin etc usr/share/doc many deep/a/b/c/d/e/f empty
            cp /usr/bin/sha256sum /usr/bin/cat bin/
            : >zero; echo small >small
            head -c 131072 /dev/urandom >one-block; head -c 131073 /dev/urandom >block-and-byte
            head -c 1500000 /dev/urandom >noise; seq 1 2500000 >numbers
            truncate -s 3M sparse; echo middle | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
            truncate -s 1M all-holes; echo end >>all-holes
            for n in $(seq 1 300); do seq $n $((n * 7 % 4000)) >usr/share/doc/$n.txt; done
            (cd many; seq -f 'entry-%g' 1 5000 | xargs touch)
            echo deep >deep/a/b/c/d/e/f/file
            ln small hard; ln small deep/hard2
            ln -s small link; ln -s /etc/absolute absolute; ln -s usr/share/doc doc
            ln -s "$(head -c 4000 /dev/zero | tr '\0' x)" long-link
            mkfifo fifo; mknod null c 1 3; mknod disk b 259 70000
            echo 'root:x:0:0::/root:/bin/sh' >etc/passwd
            echo name >'with space'; echo name >$'new\nline'; echo name >$'not-utf8-\xff'; echo name >"$(head -c 255 /dev/zero | tr '\0' n)"
            echo secret >secret; chmod 600 secret; echo s >setuid; chmod 6755 setuid; mkdir sticky; chmod 1777 sticky
            echo own >own; chown {TEST_USER}:{TEST_USER} own; echo other >other; chown 12345:54321 other
            setfattr -n user.comment -v hello small; setfattr -n user.empty small; setfattr -n user.dir -v d usr
            setfattr -n trusted.hidden -v t own
            find . -exec touch -h -d '2021-02-03 04:05:06 UTC' {{}} +
            cd ..; mksquashfs tree image.sqsh -comp zstd -Xcompression-level 1 -noappend -no-progress -quiet >/dev/null
            rm -r tree"#
        );
        stdout(Command::new("/bin/bash").args(["-c", &script]).current_dir(dir.path()));
        let path = dir.path().join("image.sqsh");
        (dir, path)
    });
    path
}

/// The image mounted by the kernel; unmounted on drop.
struct KernelMount(tempfile::TempDir);

impl KernelMount {
    fn new(image: &Path) -> KernelMount {
        let dir = scratch();
        let root = dir.path().join("root");
        fs::create_dir(&root).expect("mount point");
        stdout(Command::new("mount").args(["-t", "squashfs", "-o", "loop,ro"]).arg(image).arg(&root));
        KernelMount(dir)
    }

    /// What a script prints in the root of the mount, as the ordinary user.
    fn run(&self, script: &str) -> String {
        stdout(as_user("/bin/bash").args(["-c", script]).current_dir(self.0.path().join("root")))
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        run(Command::new("umount").arg(self.0.path().join("root")));
    }
}

/// Runs a script on the kernel's mount and on ours; the outputs must be equal. Gives the output.
#[track_caller]
fn check_equal(service: &Service, script: &str) -> String {
    let ours = service.run(script);
    let kernel = KernelMount::new(&service.image()).run(script);
    if ours != kernel {
        let difference = ours.lines().zip(kernel.lines()).find(|(ours, kernel)| ours != kernel);
        panic!(
            "{script}\nfirst difference (ours, kernel): {difference:?}, {} and {} bytes",
            ours.len(),
            kernel.len()
        );
    }
    ours
}

// ---------------------------------------------------------------------------------------------------------------------
// Equal to the kernel's squashfs.

#[test]
fn attributes_equal_the_kernels() {
    let listing = check_equal(&Service::new(), r"find . -printf '%p|%y|%m|%n|%s|%T@|%l|%i\n' | sort");
    assert!(listing.lines().count() > 5_300, "the whole image");
}

#[test]
fn owners_are_the_images_where_they_are_mapped() {
    let uid = nix::unistd::User::from_name(TEST_USER).expect("passwd").expect("test user").uid;
    let out = Service::new().run("stat -c '%u' own other small; cat own other small; cat secret 2>&1; true");
    assert_eq!(out, format!("{uid}\n65534\n65534\nown\nother\nsmall\ncat: secret: Permission denied\n"));
}

#[test]
fn contents_equal_the_kernels() {
    let sums =
        check_equal(&Service::new(), "find . -type f ! -name secret -print0 | sort -z | xargs -0 sha256sum");
    assert!(sums.lines().count() > 5_300, "the whole image");
}

#[test]
fn reads_at_any_offset_equal_the_kernels() {
    let mut random = Random::new(crate::support::seed());
    let mut script = String::new();
    for _ in 0..150 {
        let file = ["noise", "sparse", "all-holes", "block-and-byte", "numbers"][random.below(5) as usize];
        let (offset, length) = (random.below(1_600_000), random.below(300_000));
        writeln!(script, "tail -c +{offset} {file} | head -c {length} | cksum").expect("string");
    }
    script.push_str("for n in 0 1 131071 131072 1499999 1500000; do dd if=noise bs=1 skip=$n count=9 status=none | cksum; done");
    check_equal(&Service::new(), &script);
}

#[test]
fn xattrs_equal_the_kernels() {
    let out = check_equal(
        &Service::new(),
        "getfattr -R -P -h -d -m - . | sort; getfattr -n user.none small 2>&1; true",
    );
    assert!(out.contains("user.comment=\"hello\"") && !out.contains("trusted"), "{out}");
}

#[test]
fn listings_can_be_sought() {
    let script = r#"perl -e '
        for my $dir (".", "many", "empty", "usr/share/doc") {
            opendir(my $d, $dir) or die "opendir $dir: $!";
            my (@at, @names);
            while (1) { push @at, telldir($d); my $n = readdir($d); last unless defined $n; push @names, $n }
            for my $i (reverse(grep { $_ % 41 == 0 || $_ > $#names - 5 } 0 .. $#names), map { int(rand(@names)) } 1 .. 50) {
                seekdir($d, $at[$i]);
                my $n = readdir($d);
                die "$dir: at $i is $n, not $names[$i]" unless $n eq $names[$i];
                my $next = readdir($d);
                die "$dir: after $i" unless ($next // "end") eq ($names[$i + 1] // "end");
            }
            rewinddir($d);
            my @again = readdir($d);
            print "$dir $#again $#names\n";
            print "$_\n" for sort @again;
        }'"#;
    check_equal(&Service::new(), script);
}

#[test]
fn what_lacks_is_missing_and_what_cannot_change_does_not() {
    let script = "stat nothing 2>&1; stat small/x 2>&1; stat deep/a/x 2>&1; cat deep 2>&1; readlink small
        cat $(head -c 300 /dev/zero | tr '\\0' n) 2>&1 | tail -c 20
        touch new 2>&1; rm small 2>&1; mkdir d 2>&1; echo x 2>/dev/null >small || echo refused
        mv small s 2>&1; ln small s 2>&1; chmod 777 sticky 2>&1; true";
    let out = check_equal(&Service::new(), script);
    assert_eq!(out.matches("Read-only file system").count(), 6, "{out}");
}

#[test]
fn programs_run_from_the_image_and_set_id_bits_do_not_count() {
    let out = Service::new().run("bin/sha256sum small; findmnt -n -o OPTIONS -T . | tr , '\\n' | grep -c -E '^(ro|nosuid|nodev)$'; stat -f -c '%l %S %f' .");
    assert!(out.ends_with("  small\n3\n256 131072 0\n"), "{out}");
}

/// Nothing but the number of requests changes when the kernel offers little.
#[test]
fn an_old_kernel_sees_the_same() {
    let mut service = Service::new();
    service.masked = OLD_KERNEL;
    check_equal(
        &service,
        r"find . -printf '%p|%y|%m|%n|%s|%T@|%l|%i\n' | sort; ls -U many | cksum; sha256sum noise numbers bin/*",
    );
}

#[test]
fn eight_readers_at_once_see_the_same() {
    let out = Service::new().run(
        "for n in 1 2 3 4 5 6 7 8; do
            (find . -type f ! -name secret -print0 | shuf -z --random-source=<(yes $n) | xargs -0 sha256sum | sort | sha256sum) &
        done; wait",
    );
    let sums: std::collections::BTreeSet<_> = out.lines().collect();
    assert_eq!((out.lines().count(), sums.len()), (8, 1), "{out}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Grafts.

#[test]
fn grafts_stand_among_the_images_entries() {
    let mut service = Service::new();
    service.grafts = "dir /scratch/project\nfile /etc/hosts\ncontent /etc/passwd me:x:1:1::/:/bin/sh\nlink /etc/mtab ../proc/mounts\n\
                      dir /many/zz-new\ncontent /doc/1.txt replaced\ndir /usr/share\nfile /small\nlink /empty gone\ncontent /deep/a now a file\n\
                      dir /scratch/project/below"
        .into();
    let out = service.run(
        r"cat etc/passwd; echo; readlink etc/mtab empty; cat usr/share/doc/1.txt deep/a; echo; cat small
        stat -c '%n %F %a %h %s' scratch scratch/project etc/hosts etc/passwd etc/mtab etc usr/share deep . many
        ls etc; ls -A scratch/project; ls many | wc -l; ls -a many | head -3; ls -U many | sort | uniq -d; ls deep; cat usr/share/doc/2.txt | wc -l
        find . -printf '%i\n' | sort | uniq -d | wc -l; stat deep/a/b 2>&1; stat scratch/none 2>&1; true",
    );
    let expected = "me:x:1:1::/:/bin/sh\n../proc/mounts\ngone\nreplacednow a file\nsmall\n\
        scratch directory 755 3 0\nscratch/project directory 755 3 0\netc/hosts regular empty file 644 1 0\n\
        etc/passwd regular file 644 1 19\netc/mtab symbolic link 777 1 14\n";
    assert!(out.starts_with(expected), "{out}");
    for (part, what) in [
        ("\nhosts\nmtab\npasswd\nbelow\n5001\n.\n..\nentry-1\n", "listings"),
        ("\na\nhard2\n13\n", "deep, and an untouched neighbour"),
        ("cannot statx 'deep/a/b': Not a directory", "what a replaced directory had"),
        ("cannot statx 'scratch/none': No such file or directory", "a missing name in a graft"),
        ("\nmany directory 755 3 ", "the link count with an added directory"),
        ("\ndeep directory 755 2 ", "the link count without the replaced directory"),
    ] {
        assert!(out.contains(part), "{what}: {out}");
    }
}

#[test]
fn grafted_listings_can_be_sought() {
    let mut service = Service::new();
    service.grafts = "dir /many/zz-1\ndir /many/zz-2\nfile /many/entry-4000\ncontent /many/entry-77 x\nlink /many/entry-78 x\ndir /fresh/one\ndir /fresh/two".into();
    let out = service.run(
        r#"perl -e '
        for my $dir ("many", "fresh") {
            opendir(my $d, $dir) or die; my (@at, @names);
            while (1) { push @at, telldir($d); my $n = readdir($d); last unless defined $n; push @names, $n }
            for my $i (reverse(grep { $_ % 41 == 0 || $_ > $#names - 9 } 0 .. $#names)) {
                seekdir($d, $at[$i]); my $n = readdir($d);
                die "$dir: at $i is $n, not $names[$i]" unless $n eq $names[$i];
            }
            my %seen; $seen{$_}++ for @names;
            print scalar(@names), " ", scalar(keys %seen), "\n";
        }'"#,
    );
    assert_eq!(out, "5004 5004\n4 4\n");
}

#[test]
fn grafts_carry_binds() {
    let mut service = Service::new();
    let source = service.dir.path().join("source");
    fs::create_dir_all(source.join("inner")).expect("directory");
    fs::write(source.join("file"), "from the host\n").expect("file");
    service.grafts = "dir /data/a\ndir /mnt\nfile /etc/resolv.conf\nfile /etc/passwd".into();
    let source = source.display();
    service.binds = format!(
        "{source} /data/a\n{source}/inner /mnt\n{source}/file /etc/resolv.conf\n{source}/file /etc/passwd"
    );
    let out = service.run("cat data/a/file etc/resolv.conf etc/passwd; ls data/a mnt; cat small");
    assert_eq!(out, "from the host\nfrom the host\nfrom the host\ndata/a:\nfile\ninner\n\nmnt:\nsmall\n");
}

// ---------------------------------------------------------------------------------------------------------------------
// Requests.

/// Replies that the server gave while a script ran.
#[track_caller]
fn requests(script: &str) -> usize {
    requests_of(test_image(), script)
}

#[track_caller]
fn requests_of(image: &Path, script: &str) -> usize {
    let mut service = Service::of(image);
    let log = service.dir.path().join("strace");
    let trace = ["strace", "-f", "-y", "--seccomp-bpf", "-qq", "-e", "trace=writev", "-o"];
    service.wrapper = trace.iter().map(ToString::to_string).chain([log.display().to_string()]).collect();
    service.run(script);
    let log = fs::read(&log).expect("log of strace");
    text(&log).lines().filter(|line| line.contains("writev(") && line.contains("/dev/fuse")).count()
}

#[test]
fn nothing_is_asked_twice() {
    let once = "stat -c %s small nothing deep/a/none link >/dev/null 2>&1; readlink -f doc >/dev/null; cat noise numbers >/dev/null; ls -l many >/dev/null; bin/cat small >/dev/null; getfattr -n user.comment small >/dev/null 2>&1";
    let single = requests(once);
    let many = requests(&format!("for n in 1 2 3 4 5 6; do {once}; done"));
    // An xattr is asked each time: the kernel caches none.
    assert!(many <= single + 2 * 5 + 4, "{single} requests for one round, {many} for six");
}

/// Prints which pages of files are in the page cache, by a digit each.
const RESIDENT: &str = r#"
import ctypes, mmap, sys
for name in sys.argv[1:]:
    with open(name, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        found = (ctypes.c_char * (len(pages) + 4095 >> 12))()
        start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(pages)), found) == 0
        print("".join(str(ord(page) & 1) for page in found))
"#;

/// A file of up to 2 MiB is stored as a whole, of a longer one 256 KiB at its start and 128 KiB at its end.
#[test]
fn what_a_launch_looks_up_is_in_the_page_cache() {
    let dir = scratch();
    // The kernel tells only the owner which pages there are.
    let make = format!(
        "set -e; mkdir tree; cd tree; head -c 1500000 /dev/urandom >noise; seq 1 1000000 >numbers; chown {TEST_USER} *
        cd ..; mksquashfs tree image.sqsh -noappend -no-progress -quiet"
    );
    stdout(Command::new("/bin/bash").args(["-c", &make]).current_dir(dir.path()));
    let mut service = Service::of(&dir.path().join("image.sqsh"));
    let script = format!("python3 -c '{RESIDENT}' noise numbers; cat noise numbers | sha256sum");
    let without = service.run(&script);
    assert!(without.lines().take(2).all(|pages| pages.bytes().all(|page| page == b'0')), "{without}");
    service.stored = "noise numbers";
    let with = service.run(&script);
    let [noise, numbers, sum] = with.lines().collect::<Vec<_>>()[..] else { panic!("{with}") };
    assert!(noise.bytes().all(|page| page == b'1'), "noise: {noise}");
    let (start, rest) = numbers.split_at(64);
    let (middle, end) = rest.split_at(rest.len() - 64);
    assert!(start.bytes().all(|page| page == b'1'), "start: {start}");
    assert!(middle.bytes().all(|page| page == b'0'), "middle: {middle}");
    assert!(end.bytes().skip(32).all(|page| page == b'1'), "end: {end}");
    assert_eq!(Some(sum), without.lines().nth(2), "contents");
}

#[test]
fn a_listing_with_attributes_costs_few_requests() {
    let count = requests("ls -l many | wc -l");
    assert!(count < 5_000 / 10, "{count} requests for 5000 entries");
}

#[test]
fn a_huge_listing_costs_few_requests_and_attributes_follow_on_demand() {
    const ENTRIES: usize = 12_000;
    let dir = scratch();
    let script = format!(
        "set -e; mkdir -p tree/huge; cd tree/huge; seq -f 'an-entry-with-a-rather-long-name-%g' 1 {ENTRIES} | xargs touch
        mkdir ../bin; cp /usr/bin/cat ../bin; cd ../..; mksquashfs tree image.sqsh -noappend -no-progress -quiet; rm -r tree"
    );
    stdout(Command::new("/bin/bash").args(["-c", &script]).current_dir(dir.path()));
    let image = dir.path().join("image.sqsh");
    let names = requests_of(&image, "ls -U huge | wc -l");
    assert!(names < 100, "{names} requests for the names of {ENTRIES} entries");
    let attributes = requests_of(&image, "ls -lU huge | wc -l");
    assert!(attributes < ENTRIES / 2, "{attributes} requests for the attributes of {ENTRIES} entries");
    let out =
        check_equal(&Service::of(&image), "ls -U huge; ls -lgoU huge; find huge -printf '%p %i %s %m\\n'");
    assert!(out.lines().count() > 3 * ENTRIES);
}

#[test]
fn a_lone_client_is_served_well_and_so_are_many() {
    // Long enough for the serving threads to follow, to stop following when others come, and to follow again.
    let alone = "for n in $(seq 1 300); do [ -e none-$n ] && echo found; done";
    let script = format!(
        "{alone}; for j in 1 2 3 4; do (for n in $(seq 1 200); do [ -e $j/none-$n ] && echo found; cat small; done) & done
        wait; {alone}; cat numbers | sha256sum; {alone}; true"
    );
    check_equal(&Service::new(), &script);
}

// ---------------------------------------------------------------------------------------------------------------------
// Faults.

/// Readers that ask the server all the time, past the page cache and by names it has not seen.
const LOAD: &str = "
    (while [ ! -e $D/stop ]; do dd if=noise iflag=direct bs=64k status=none | sha256sum; done | sort -u >$D/direct) &
    (while [ ! -e $D/stop ]; do dd if=numbers iflag=direct bs=1M status=none | sha256sum; done | sort -u >$D/large) &
    (while [ ! -e $D/stop ]; do timeout -s KILL 0.0$((RANDOM % 9 + 1)) dd if=numbers iflag=direct bs=256k of=/dev/null status=none; done) 2>/dev/null &
    (n=0; while [ ! -e $D/stop ]; do n=$((n+1)); [ -e none-$n ] && echo found none-$n; [ -e many/entry-$((n % 5000 + 1)) ] || echo lost $n; done >$D/names) &
    (while [ ! -e $D/stop ]; do bin/sha256sum small; find . -printf '%p %s %i\\n' | sort | sha256sum; getfattr --only-values -n user.comment small; echo; done | sort -u >$D/mixed) &
    (while [ ! -e $D/stop ]; do dd if=bin/sha256sum iflag=nocache count=0 status=none; bin/sha256sum one-block; done | sort -u >$D/executed) &
    python3 -c \"$MAPPER\" >$D/mapped &
    wait; sha256sum <noise; sha256sum <numbers; sha256sum one-block";

/// Maps a file again and again, each time after its pages were dropped: every page is a fault.
const MAPPER: &str = r#"
import hashlib, mmap, os
sums, descriptor = set(), os.open("noise", os.O_RDONLY)
while not os.path.exists(os.environ["D"] + "/stop"):
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as pages:
        sums.add(hashlib.sha256(pages).hexdigest())
print(*sums)
"#;

/// Kills the server `kills` times under load; nothing may be noticed.
#[track_caller]
pub(crate) fn check_unnoticed_kills(masked: u64, kills: usize) {
    let mut service = Service::new();
    service.masked = masked;
    let mut random = Random::new(crate::support::seed());
    let driver =
        service.start(&format!("exec >$D/out 2>$D/err; MAPPER='{MAPPER}'; touch $D/started\n{LOAD}"));
    service.await_file("started");
    let begun = Instant::now();
    let mut killed = std::collections::BTreeSet::new();
    while killed.len() < kills {
        let limit = Duration::from_secs(30) + Duration::from_millis(200) * kills as u32;
        assert!(begun.elapsed() < limit, "only {} servers came up", killed.len());
        std::thread::sleep(Duration::from_millis(10 + random.below(80)));
        // It may be the one killed last, still on its way out.
        if let Some(server) = service.server()
            && nix::sys::signal::kill(nix::unistd::Pid::from_raw(server), nix::sys::signal::SIGKILL).is_ok()
        {
            killed.insert(server);
        }
    }
    service.tell("stop");
    service.finish(driver);
    assert_eq!(service.file("err"), "");
    let (noise, read) = (service.file("direct"), service.file("large") + &service.file("executed"));
    assert_eq!(noise.clone() + &read, service.file("out"), "contents");
    assert_eq!(service.file("mapped").trim(), noise.trim_end_matches([' ', '-', '\n']), "mapped pages");
    assert_eq!(service.file("names"), "");
    assert_eq!(service.file("mixed").lines().count(), 3, "{}", service.file("mixed"));
}

fn signal(pid: i32, number: i32) {
    // Numbers that nix has no name for go through kill(1).
    stdout(Command::new("kill").arg(format!("-{number}")).arg(pid.to_string()));
}

#[test]
fn a_killed_server_is_not_noticed_where_the_kernel_sends_again() {
    check_unnoticed_kills(0, 60);
}

#[test]
fn a_killed_server_is_not_noticed_on_older_kernels() {
    check_unnoticed_kills(WITHOUT_RESEND, 60);
}

/// The server may be killed while files are stored; and with it all others, after which nobody waits for anything.
#[test]
fn who_is_killed_while_files_are_stored_leaves_nothing() {
    let mut random = Random::new(crate::support::seed());
    let mut service = Service::new();
    let script = "sha256sum noise numbers one-block block-and-byte usr/share/doc/* bin/*";
    let expected = service.run(script);
    service.stored = "noise numbers one-block block-and-byte bin/cat bin/sha256sum small";
    for round in 0..40 {
        let mut driver = service.start(&format!("exec >$D/out 2>$D/err; {script}"));
        while service.helpers("hpcrun-ahead").is_empty() {}
        std::thread::sleep(Duration::from_micros(random.below(12_000)));
        let names: &[&str] = match round % 2 {
            0 => &["hpcrun-server"],
            _ => &["hpcrun-keeper", "hpcrun-server", "hpcrun-ahead"],
        };
        for pid in names.iter().flat_map(|name| service.helpers(name)) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
        }
        if round % 2 == 0 {
            service.finish(driver);
            assert_eq!((service.file("err"), service.file("out")), (String::new(), expected.clone()));
        } else {
            driver.wait().expect("driver");
            service.check_gone();
        }
    }
}

#[test]
fn signals_are_ignored() {
    let service = Service::new();
    let driver =
        service.start("touch $D/started; while [ ! -e $D/stop ]; do sleep 0.02; done; cat small >$D/out");
    service.await_file("started");
    let (keeper, server) = (service.helper("hpcrun-keeper"), service.helper("hpcrun-server"));
    for number in (1..=64).filter(|number| ![libc::SIGKILL, libc::SIGSTOP].contains(number)) {
        signal(keeper, number);
        signal(server, number);
    }
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!((keeper, server), (service.helper("hpcrun-keeper"), service.helper("hpcrun-server")));
    service.tell("stop");
    service.finish(driver);
    assert_eq!(service.file("out"), "small\n");
}

#[test]
fn the_server_goes_on_without_its_keeper() {
    let service = Service::new();
    let driver = service
        .start("touch $D/started; while [ ! -e $D/stop ]; do sleep 0.02; done; sha256sum noise >$D/out");
    service.await_file("started");
    let server = service.helper("hpcrun-server");
    signal(service.helper("hpcrun-keeper"), libc::SIGKILL);
    service.tell("stop");
    service.finish(driver);
    assert!(service.file("out").ends_with("  noise\n"));
    // Whoever adopted it may not have reaped it yet.
    let stat = fs::read_to_string(format!("/proc/{server}/stat")).unwrap_or_default();
    assert!(stat.is_empty() || stat.contains(") Z "), "the server lives: {stat}");
}

/// A process in the background keeps its root after the first one has gone.
#[test]
fn the_last_user_counts() {
    let service = Service::new();
    let mut driver = service.start(
        "(exec >/dev/null 2>&1; while [ ! -e $D/stop ]; do sleep 0.02; done; cat small >$D/out; touch $D/done) & exit 0",
    );
    assert!(driver.wait().expect("driver").success());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(service.helpers("hpcrun-server").len(), 1);
    service.tell("stop");
    service.await_file("done");
    service.check_gone();
    assert_eq!(service.file("out"), "small\n");
}

#[test]
fn without_a_mount_nothing_stays() {
    let service = Service::new();
    service.finish(service.start("drop"));
}

#[test]
fn a_damaged_image_fails_only_what_it_hits() {
    let service = Service::new();
    let image = fs::read(service.image()).expect("image");
    // The data of `noise` cannot be compressed, so its bytes stand in the image as they are.
    let noise = service.run("head -c 64 noise | tee $D/noise-start >/dev/null");
    assert_eq!(noise, "");
    let start = fs::read(service.dir.path().join("noise-start")).expect("bytes");
    let at = image.windows(64).position(|window| window == start).expect("noise in the image");
    let driver = service.start(
        "exec >$D/out 2>$D/err; cat small; touch $D/started; while [ ! -e $D/damaged ]; do sleep 0.02; done
        cat numbers >/dev/null; cat noise >/dev/null; cat deep/a/b/c/d/e/f/file; stat usr/share/doc/1.txt
        touch $D/tried; while [ ! -e $D/repaired ]; do sleep 0.02; done
        cat noise | sha256sum; cat deep/a/b/c/d/e/f/file; stat -c %F usr/share/doc/1.txt",
    );
    service.await_file("started");
    // Shorter than even `noise` begins: whatever has not been read yet is lost, the tables at the end first of all.
    let file = fs::File::options().write(true).open(service.image()).expect("image");
    file.set_len(at as u64).expect("truncate");
    service.tell("damaged");
    service.await_file("tried");
    std::os::unix::fs::FileExt::write_all_at(&file, &image, 0).expect("repair");
    service.tell("repaired");
    service.finish(driver);
    let errors = service.file("err");
    assert!(errors.contains("cat: noise: Input/output error"), "{errors}");
    assert!(!errors.contains("No such file"), "an I/O error is not a missing file: {errors}");
    let out = service.file("out");
    assert!(out.starts_with("small\n"), "{out}");
    assert!(out.ends_with("  -\ndeep\nregular file\n"), "no error was cached: {out}\n{errors}");
}

// ---------------------------------------------------------------------------------------------------------------------
// What the server takes.

#[test]
fn helpers_hold_only_what_they_need() {
    let mut service = Service::new();
    let inherit = r#"exec 5</etc/hostname 8>/dev/full 250</etc/hosts; exec "$@""#;
    service.wrapper = ["taskset", "-c", "0", "bash", "-c", inherit, "inherit"].map(String::from).into();
    let driver = service.start("touch $D/started; while [ ! -e $D/stop ]; do sleep 0.02; done");
    service.await_file("started");
    for name in ["hpcrun-keeper", "hpcrun-server"] {
        let pid = service.helper(name);
        let held = || {
            let held = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors");
            let mut held: Vec<PathBuf> =
                held.filter_map(|fd| fs::read_link(fd.expect("entry").path()).ok()).collect();
            // The keeper keeps its end of the launcher's pipe, which tells servers to come that there is a mount.
            if name == "hpcrun-keeper" {
                held.retain(|held| !held.to_string_lossy().starts_with("pipe:"));
            }
            held.sort();
            held
        };
        let null = PathBuf::from("/dev/null");
        let wanted = [PathBuf::from("/dev/fuse"), null.clone(), null.clone(), null, service.image()];
        // The first server has the pipe until it has seen that the launcher is the job.
        let deadline = Instant::now() + Duration::from_secs(10);
        while held() != wanted {
            assert!(Instant::now() < deadline, "{name} holds {:?}", held());
            std::thread::sleep(Duration::from_millis(5));
        }
        let link = |what: &str| fs::read_link(format!("/proc/{pid}/{what}")).expect("link");
        assert_eq!(link("cwd"), Path::new("/"));
        assert_eq!(
            link("ns/mnt"),
            fs::read_link("/proc/self/ns/mnt").expect("link"),
            "outside the job's mounts"
        );
        let allowed = |pid: &str| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
            status.lines().find(|line| line.starts_with("Cpus_allowed_list")).map(str::to_owned)
        };
        // A server shares the launcher's CPU until the job has settled.
        while allowed(&pid.to_string()) != allowed("self") {
            assert!(Instant::now() < deadline, "{name} is bound: {:?}", allowed(&pid.to_string()));
            std::thread::sleep(Duration::from_millis(5));
        }
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core")).expect("core limit");
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        let owner = fs::metadata(format!("/proc/{pid}/environ")).expect("environ").uid();
        assert_eq!(owner, 0, "not to be traced or dumped by the user");
    }
    service.tell("stop");
    service.finish(driver);
}

#[test]
fn memory_is_bounded_and_idleness_free() {
    let service = Service::new();
    let driver = service.start(
        "exec >/dev/null 2>$D/err
        for n in 1 2 3 4 5 6 7 8; do (find . -type f ! -name secret -print0 | shuf -z | xargs -0 cat; dd if=numbers iflag=direct bs=1M status=none; ls -lR .) & done; wait
        touch $D/read; while [ ! -e $D/stop ]; do sleep 0.2; done",
    );
    service.await_file("read");
    let server = service.helper("hpcrun-server");
    let status = fs::read_to_string(format!("/proc/{server}/status")).expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("kilobytes");
    println!("peak memory of the server: {peak} kB");
    assert!(peak <= 64 << 10, "{peak} kB");
    let cpu = || {
        let stat = fs::read_to_string(format!("/proc/{server}/stat")).expect("stat");
        stat.split_whitespace()
            .skip(13)
            .take(2)
            .map(|ticks| ticks.parse::<u64>().expect("ticks"))
            .sum::<u64>()
    };
    let before = cpu();
    std::thread::sleep(Duration::from_millis(1000));
    assert_eq!(cpu(), before, "ticks of an idle server");
    service.tell("stop");
    service.finish(driver);
    assert_eq!(service.file("err"), "");
}

#[test]
fn the_device_is_there_for_everybody() {
    let device = fs::metadata("/dev/fuse").expect("/dev/fuse");
    assert!(device.file_type().is_char_device() && device.permissions().mode() & 0o666 == 0o666);
}

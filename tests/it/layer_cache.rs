//! The layer cache and the order of data: whatever is cached, damaged, full or shared, the image file is the one that a
//! conversion without a cache makes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use hpcrun::convert::source::{Source, SourceError, SourceImage};
use hpcrun::convert::{
    ConvertOptions, Destination, Extras, LayerCache, Order, Progress, Summary, convert_with,
};
use hpcrun::squashfs::compress::Compression;

use crate::layer_building::{Member, MemoryImage, chain, layer, padded, tar};
use crate::registry::scripted::Scripted;
use crate::sources::layout::{Image, Layout, OCI_MANIFEST, Packing, descriptor, named};
use crate::support::{self, Random, TEST_USER};

// ---- conversions in-process ------------------------------------------------------------------------------------

/// An image in memory that notes which layers are opened.
#[derive(Debug)]
struct Watched {
    image: MemoryImage,
    opened: Mutex<Vec<usize>>,
}

impl Watched {
    fn new(tars: &[Vec<u8>]) -> Watched {
        Watched { image: MemoryImage::plain(tars.to_vec()), opened: Mutex::default() }
    }
}

impl Source for Watched {
    fn image(&self) -> &SourceImage {
        &self.image.image
    }

    fn open_layer(&self, index: usize) -> Result<Box<dyn Read + Send>, SourceError> {
        self.opened.lock().unwrap().push(index);
        self.image.open_layer(index)
    }
}

/// What a conversion made: the file's bytes or the error, the layers opened, the summary.
struct Outcome {
    result: Result<Vec<u8>, String>,
    opened: BTreeSet<usize>,
    summary: Option<Summary>,
}

impl Outcome {
    fn bytes(&self) -> &[u8] {
        self.result.as_ref().unwrap()
    }
}

/// Small blocks, so that small images have many.
fn options(jobs: usize) -> ConvertOptions {
    ConvertOptions { jobs, block_size: 4096, compression: Compression::Zstd(1), ..ConvertOptions::default() }
}

struct Bench {
    scratch: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        // In memory: thousands of small files are synced.
        let scratch = tempfile::Builder::new().prefix("hpcrun-test-").tempdir_in("/dev/shm");
        Bench { scratch: scratch.expect("a directory in /dev/shm") }
    }

    fn cache_path(&self) -> PathBuf {
        self.scratch.path().join("cache")
    }

    fn cache(&self) -> LayerCache {
        LayerCache::open(&self.cache_path(), 1 << 30).unwrap()
    }

    fn convert(
        &self,
        tars: &[Vec<u8>],
        cache: Option<&LayerCache>,
        order: Option<&Order>,
        jobs: usize,
    ) -> Outcome {
        let source = Watched::new(tars);
        let path = self.scratch.path().join("image.sqsh");
        let destination = Destination { path: path.clone(), force: true };
        let progress = Progress::new(source.image());
        let extras = Extras { cache, order };
        let made =
            convert_with(extras, &source, &destination, &options(jobs), &progress, |_| b"trailer".to_vec());
        let summary = made.as_ref().ok().copied();
        let result = made.map(|_| fs::read(&path).unwrap()).map_err(|error| chain(&error));
        Outcome { result, opened: source.opened.into_inner().unwrap().into_iter().collect(), summary }
    }

    /// Without a cache.
    fn scratch_build(&self, tars: &[Vec<u8>], order: Option<&Order>) -> Outcome {
        self.convert(tars, None, order, 2)
    }

    fn layers(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> =
            fs::read_dir(self.cache_path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

// ---- generated stacks ------------------------------------------------------------------------------------------

/// Makes layers that have everything the merge and the writer care about, out of few names and few contents, so that
/// they meet.
struct Generator {
    random: Random,
    /// Contents that come again in other layers.
    pool: Vec<Vec<u8>>,
}

const DIRECTORIES: [&str; 5] = ["", "a/", "a/b/", "c/", "d/"];

impl Generator {
    fn new(seed: u64) -> Generator {
        let mut generator = Generator { random: Random::new(seed), pool: Vec::new() };
        for _ in 0..12 {
            let content = generator.content();
            generator.pool.push(content);
        }
        generator
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn content(&mut self) -> Vec<u8> {
        let length = match self.below(10) {
            0 => 0,
            1..=6 => self.below(2500),
            7 => 4096 * self.below(3),
            _ => 4000 + self.below(30_000),
        } as usize;
        let letter = self.random.next() as u8;
        match self.below(4) {
            0 => vec![0; length],
            1 => (0..length).map(|_| self.random.next() as u8).collect(),
            2 => {
                // Holes in the middle.
                let mut content = vec![letter | 1; length];
                let (start, end) = (length / 5, length * 4 / 5);
                content[start..end].fill(0);
                content
            }
            _ => (0..length).map(|at| letter.wrapping_add((at / 7 % 50) as u8)).collect(),
        }
    }

    fn name(&mut self) -> String {
        let directory = DIRECTORIES[self.below(5) as usize];
        format!("{directory}f{}", self.below(25))
    }

    fn member(&mut self) -> Member {
        let name = self.name();
        match self.below(20) {
            0..=9 => {
                let content = self.content();
                Member::file(name, content)
            }
            10..=12 => {
                let number = self.below(12) as usize;
                let content = self.pool[number].clone();
                Member::file(name, content).mode(0o4755).owner(self.below(3) as u32, 7)
            }
            13 => Member::symlink(name, "c/f1"),
            14 => {
                let value = vec![b'v'; self.below(40) as usize];
                Member::file(name, "with attributes").pax("SCHILY.xattr.user.k", value)
            }
            15 => {
                let content = self.content();
                let end = content.len() + 70_000;
                Member::file(name, padded(&content))
                    .pax("GNU.sparse.major", "0")
                    .pax("GNU.sparse.minor", "1")
                    .pax("GNU.sparse.size", (end + 100_000).to_string())
                    .pax("GNU.sparse.numblocks", "1")
                    .pax("GNU.sparse.map", format!("50000,{}", padded(&content).len()))
            }
            16 => Member { device: (1, self.below(200) as u32), ..Member::new(b'3', name) },
            17 | 18 => {
                let (directory, file) = name.rsplit_once('/').unwrap_or(("", &name));
                let slash = if directory.is_empty() { "" } else { "/" };
                Member::file(format!("{directory}{slash}.wh.{file}"), "")
            }
            _ => Member::directory(DIRECTORIES[self.below(4) as usize + 1]),
        }
    }

    fn layer(&mut self, members: u64) -> Vec<u8> {
        let mut all = Vec::new();
        let mut files: Vec<Vec<u8>> = Vec::new();
        for _ in 0..members {
            let member = self.member();
            if member.type_flag == b'0' && !member.name.windows(4).any(|part| part == b".wh.") {
                files.push(member.name.clone());
            }
            all.push(member);
            // Names of this layer, so links always have a target; what hides it comes from other layers.
            if !files.is_empty() && self.below(8) == 0 {
                let target = files[self.below(files.len() as u64) as usize].clone();
                all.push(Member::hard_link(format!("link{}", self.below(30)), target));
            }
        }
        if self.below(6) == 0 {
            all.push(Member::file("a/.wh..wh..opq", ""));
        }
        tar(&all)
    }

    /// A list of files of which some exist.
    fn order(&mut self) -> Order {
        let lines: Vec<String> = (0..15).map(|_| format!("/{}\n", self.name())).collect();
        Order::parse((lines.concat() + "link1\nlink2\nnone\n").as_bytes())
    }
}

/// Stacks as builds make them one after the other, through one cache: each must become what it becomes without.
#[test]
fn generated_stacks_do_not_depend_on_the_cache() {
    let first_seed = support::seed().saturating_mul(1000);
    let (mut trees, mut hits, mut unopened) = (0, 0, 0);
    for seed in first_seed..first_seed.saturating_add(40) {
        let mut generator = Generator::new(seed);
        let bench = Bench::new();
        let cache = bench.cache();
        let [base, middle, top, other, extra] = [40, 15, 8, 8, 10].map(|members| generator.layer(members));
        let stacks: [&[&Vec<u8>]; 9] = [
            &[&base, &middle, &top],
            &[&base, &middle, &top],
            &[&base, &middle, &other],
            &[&base, &other],
            &[&base],
            &[&base, &extra, &middle, &top],
            &[&middle, &base],
            &[&top, &base, &middle, &top, &base],
            &[&base, &middle, &top],
        ];
        for (step, stack) in stacks.into_iter().enumerate() {
            let tars: Vec<Vec<u8>> = stack.iter().map(|tar| (*tar).clone()).collect();
            let order = (step % 3 == 2).then(|| generator.order());
            let expected = bench.scratch_build(&tars, order.as_ref());
            for round in 0..2 {
                let got = bench.convert(&tars, Some(&cache), order.as_ref(), 1 + round * 3);
                assert!(
                    got.result == expected.result,
                    "seed {seed}, step {step}, round {round}: {:?}",
                    got.result.as_ref().err()
                );
                let Some(summary) = got.summary else { continue };
                let same = Summary { cached_layers: 0, ..summary };
                assert_eq!(Some(same), expected.summary, "seed {seed}, step {step}");
                trees += 1;
                hits += summary.cached_layers;
                unopened += usize::from(got.opened.is_empty());
                if round == 1 {
                    assert_eq!(got.opened, BTreeSet::new(), "seed {seed}, step {step}: all is cached by now");
                }
            }
        }
    }
    println!("{trees} trees, {hits} layers from the cache, {unopened} conversions opened no layer");
    assert!(trees > 600 && hits > 1500 && unopened > 300, "{trees} {hits} {unopened}");
}

/// An upper layer that hides a file is taken away: the file's data is not in the cache.
#[test]
fn a_file_that_was_hidden_is_read_from_the_source() {
    let bench = Bench::new();
    let cache = bench.cache();
    let noise: Vec<u8> = {
        let mut random = Random::new(5);
        (0..20_000).map(|_| random.next() as u8).collect()
    };
    let base = tar(&[Member::file("kept", "kept"), Member::file("gone", &noise), Member::file("small", "s")]);
    let hiding = layer(".wh.gone .wh.small");
    let both = [base.clone(), hiding.clone()];
    assert_eq!(bench.convert(&both, Some(&cache), None, 2).bytes(), bench.scratch_build(&both, None).bytes());
    let alone = [base.clone()];
    let got = bench.convert(&alone, Some(&cache), None, 2);
    assert_eq!(got.bytes(), bench.scratch_build(&alone, None).bytes());
    assert_eq!(got.opened, BTreeSet::from([0]), "the cache had not all of it");
    // Now it has, and keeps what it had.
    for stack in [&alone[..], &both] {
        let got = bench.convert(stack, Some(&cache), None, 2);
        assert_eq!(got.bytes(), bench.scratch_build(stack, None).bytes());
        assert_eq!(got.opened, BTreeSet::new());
    }
}

/// What every start reads is stored as it is, with a cache or without.
#[test]
fn the_c_library_and_identities_are_stored_plain() {
    let bench = Bench::new();
    let cache = bench.cache();
    let content: Vec<u8> = (0..20_000_u32).flat_map(|number| number.to_string().into_bytes()).collect();
    let passwd = b"root:x:0:0:root:/root:/bin/sh\n".repeat(30);
    let stack = [
        tar(&[
            Member::file("usr/lib/x86_64-linux-gnu/libc.so.6", &content),
            Member::file("a", &content[1..]),
            Member::file("etc/group", ""),
            Member::file("etc/passwd", &passwd),
        ]),
        layer("other=1"),
    ];
    let plain = bench.scratch_build(&stack, None);
    for round in 0..2 {
        let got = bench.convert(&stack, Some(&cache), None, 2);
        assert_eq!(got.bytes(), plain.bytes(), "round {round}");
    }
    let times = |wanted: &[u8]| plain.bytes().windows(wanted.len()).filter(|bytes| *bytes == wanted).count();
    let whole_blocks = content.len() / 4096 * 4096;
    assert_eq!((times(&content[..whole_blocks]), times(&content[4096..4196])), (1, 1));
    assert_eq!(times(&passwd), 1);
}

/// Two images hide different files of one layer; after both the cache serves both.
#[test]
fn what_one_image_hides_stays_cached_for_the_other() {
    let bench = Bench::new();
    let cache = bench.cache();
    let base = layer("x=1 y=2 z=3");
    let (hides_x, hides_y) = ([base.clone(), layer(".wh.x")], [base.clone(), layer(".wh.y")]);
    for stack in [&hides_x, &hides_y] {
        assert_eq!(
            bench.convert(stack, Some(&cache), None, 1).bytes(),
            bench.scratch_build(stack, None).bytes()
        );
    }
    for stack in [&hides_x[..], &hides_y, std::slice::from_ref(&base)] {
        let got = bench.convert(stack, Some(&cache), None, 1);
        assert_eq!(got.bytes(), bench.scratch_build(stack, None).bytes());
        assert_eq!(got.opened, BTreeSet::new());
    }
}

#[test]
fn other_parameters_are_other_layers() {
    let bench = Bench::new();
    let cache = bench.cache();
    let tars = [layer("a=1 b=2")];
    let convert = |options: &ConvertOptions, cache| {
        let source = Watched::new(&tars);
        let path = bench.scratch.path().join("image.sqsh");
        let destination = Destination { path: path.clone(), force: true };
        let progress = Progress::new(source.image());
        let extras = Extras { cache, order: None };
        convert_with(extras, &source, &destination, options, &progress, |_| Vec::new()).unwrap();
        (fs::read(&path).unwrap(), source.opened.into_inner().unwrap().len())
    };
    let all = [
        options(1),
        ConvertOptions { block_size: 8192, ..options(1) },
        ConvertOptions { compression: Compression::Zstd(2), ..options(1) },
        ConvertOptions { compression: Compression::Gzip(2), ..options(1) },
        ConvertOptions { compression: Compression::Lz4, ..options(1) },
        ConvertOptions { compression: Compression::Xz(2), ..options(1) },
    ];
    for (round, opened) in [(0, 1), (1, 0)] {
        for options in &all {
            let (expected, _) = convert(options, None);
            assert_eq!(convert(options, Some(&cache)), (expected, opened), "round {round}: {options:?}");
        }
    }
    assert_eq!(bench.layers().len(), all.len());
}

#[test]
fn a_budget_holds_for_cached_layers_too() {
    let bench = Bench::new();
    let cache = bench.cache();
    let tars = [layer("a=1 b=2 c=3"), layer("d=4")];
    bench.convert(&tars, Some(&cache), None, 1).bytes();
    let convert = |cache| {
        let source = Watched::new(&tars);
        let mut options = options(1);
        options.budget.entries = 3;
        let destination = Destination { path: bench.scratch.path().join("image.sqsh"), force: true };
        let progress = Progress::new(source.image());
        let extras = Extras { cache, order: None };
        chain(&convert_with(extras, &source, &destination, &options, &progress, |_| Vec::new()).unwrap_err())
    };
    assert_eq!(convert(Some(&cache)), convert(None));
}

// ---- damage ----------------------------------------------------------------------------------------------------

/// Whatever happens to a cached layer, the image is right, and so is the cache after the next conversion.
#[test]
fn damage_anywhere_is_noticed() {
    let mut random = Random::new(support::seed());
    let bench = Bench::new();
    let cache = bench.cache();
    let mut generator = Generator::new(99);
    let tars = [generator.layer(30), generator.layer(12), generator.layer(6)];
    let expected = bench.scratch_build(&tars, None);
    bench.convert(&tars, Some(&cache), None, 2).bytes();
    let layers = bench.layers();
    assert_eq!(layers.len(), 3);
    let mut noticed = 0;
    for path in layers {
        let good = fs::read(&path).unwrap();
        let length = good.len() as u64;
        let mut check = |what: String, bad: &[u8]| {
            fs::write(&path, bad).unwrap();
            let got = bench.convert(&tars, Some(&cache), None, 2);
            assert!(got.bytes() == expected.bytes(), "{what} of {}", path.display());
            noticed += usize::from(!got.opened.is_empty());
            assert!(!got.opened.is_empty() || fs::read(&path).unwrap() == bad);
            let again = bench.convert(&tars, Some(&cache), None, 2);
            assert!(again.bytes() == expected.bytes());
            assert_eq!(again.opened, BTreeSet::new(), "{what}: the layer is cached again");
        };
        let anywhere = (0..25).map(|_| random.below(length)).collect::<Vec<_>>();
        for at in anywhere.into_iter().chain((length.saturating_sub(70)..length).step_by(3)) {
            let mut bad = good.clone();
            bad[at as usize] ^= 1 << random.below(8);
            check(format!("bit flip at {at} of {length}"), &bad);
        }
        for keep in [0, 1, 63, 64, length / 3, length / 2, length - 65, length - 64, length - 1] {
            check(format!("{keep} of {length} bytes"), &good[..keep as usize]);
        }
        check("a byte too many".to_owned(), &[&good[..], b"x"].concat());
        check("zeros".to_owned(), &vec![0; good.len()]);
    }
    assert!(noticed > 100, "{noticed}");
}

#[test]
fn what_others_could_have_written_is_not_used() {
    let bench = Bench::new();
    let cache = bench.cache();
    let tars = [layer("a=1"), layer("b=2")];
    let expected = bench.convert(&tars, Some(&cache), None, 1);
    let layers = bench.layers();
    fs::set_permissions(&layers[0], PermissionsExt::from_mode(0o666)).unwrap();
    let got = bench.convert(&tars, Some(&cache), None, 1);
    assert!(got.bytes() == expected.bytes());
    assert_eq!(got.opened.len(), 1);
    // It was replaced.
    assert_eq!(bench.convert(&tars, Some(&cache), None, 1).opened, BTreeSet::new());
    fs::set_permissions(bench.cache_path(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = chain(&LayerCache::open(&bench.cache_path(), 1 << 30).unwrap_err());
    assert!(error.ends_with("is not used: others can write to it"), "{error}");
}

#[test]
fn layers_unused_for_longest_go_and_none_when_all_are_young() {
    let bench = Bench::new();
    bench.convert(&[layer("a=1"), layer("b=2")], Some(&bench.cache()), None, 1);
    let one = fs::metadata(&bench.layers()[0]).unwrap().len().next_multiple_of(4096);
    let small = LayerCache::open(&bench.cache_path(), 3 * one).unwrap();
    bench.convert(&[layer("c=3")], Some(&small), None, 1);
    assert_eq!(bench.layers().len(), 3);
    bench.convert(&[layer("d=4")], Some(&small), None, 1);
    assert_eq!(bench.layers().len(), 3, "all three are young");
    let old = SystemTime::now() - Duration::from_secs(3600);
    for path in bench.layers() {
        File::open(path).unwrap().set_modified(old).unwrap();
    }
    bench.convert(&[layer("c=3")], Some(&small), None, 1);
    bench.convert(&[layer("d=4"), layer("e=5")], Some(&small), None, 1);
    assert_eq!(bench.layers().len(), 3);
    assert_eq!(
        bench.convert(&[layer("c=3")], Some(&small), None, 1).opened,
        BTreeSet::new(),
        "used a moment ago"
    );
}

// ---- order -----------------------------------------------------------------------------------------------------

fn noise(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.next() as u8).collect()
}

/// Where in an image the bytes are, which do not compress.
fn position(image: &[u8], content: &[u8]) -> usize {
    let start = &content[..64];
    image.windows(64).position(|window| window == start).expect("the data is in the image as it is")
}

#[test]
fn listed_files_come_first_and_the_tree_stays() {
    let mut random = Random::new(3);
    let contents: Vec<Vec<u8>> = (0..24).map(|number| noise(&mut random, [900, 9000][number % 2])).collect();
    let file = |number: usize| Member::file(format!("d/f{number}"), &contents[number]);
    let lower = tar(&[
        &(0..12).map(file).collect::<Vec<_>>()[..],
        &[
            Member::hard_link("d/hard", "d/f2"),
            Member::symlink("l", "d"),
            Member::file("l/through", noise(&mut random, 700)),
        ],
    ]
    .concat());
    let upper = tar(&(12..24).map(file).collect::<Vec<_>>());
    let tars = [lower, upper];
    let bench = Bench::new();
    let listed = [0, 1, 15, 16];
    let list = "# at start\n/d/f0\nd/f1\n./d//f15\nd/f16\nd/hard\nd/f15\nl\nl/f3\nnone\n../x\nd\n";
    let order = Order::parse(list.as_bytes());
    let plain = bench.scratch_build(&tars, None);
    let got = bench.scratch_build(&tars, Some(&order));
    assert_eq!(
        got.summary.unwrap().unknown_paths,
        5,
        "a link, what is behind it, nothing, outside, a directory"
    );
    let image = got.bytes();
    let last = listed.iter().chain(&[2]).map(|number| position(image, &contents[*number])).max().unwrap();
    let others = (0..24).filter(|number| ![0, 1, 2, 15, 16].contains(number));
    let next = others.map(|number| position(image, &contents[number])).min().unwrap();
    assert!(last < next, "listed data ends at {last}, the rest begins at {next}");
    let list_of = |bytes: &[u8], name: &str| {
        let path = bench.scratch.path().join(name);
        fs::write(path.with_extension("sqsh"), bytes).unwrap();
        let mut unsquash = Command::new("unsquashfs");
        support::stdout(
            unsquash.args(["-quiet", "-no-progress", "-d"]).arg(&path).arg(path.with_extension("sqsh")),
        );
        crate::convert::list(&path)
    };
    assert_eq!(list_of(plain.bytes(), "plain"), list_of(image, "ordered"));
    for jobs in [1, 3, 8] {
        assert_eq!(bench.convert(&tars, None, Some(&order), jobs).bytes(), image, "{jobs} jobs");
    }
    let cache = bench.cache();
    for opened in [BTreeSet::from([0, 1]), BTreeSet::new()] {
        let cached = bench.convert(&tars, Some(&cache), Some(&order), 2);
        assert!(cached.bytes() == image);
        assert_eq!(cached.opened, opened);
    }
    assert_eq!(bench.convert(&tars, Some(&cache), None, 2).bytes(), plain.bytes());
    let nothing = Order::parse(b"# nothing\n\n");
    assert_eq!(bench.scratch_build(&tars, Some(&nothing)).bytes(), plain.bytes());
}

// ---- through the binary ----------------------------------------------------------------------------------------

/// A layout with an image of two layers with a few MiB, and another image whose upper layer differs.
fn layout(dir: &Path) -> Layout {
    let mut random = Random::new(11);
    let mut files: Vec<Member> = (0..400)
        .map(|number| Member::file(format!("lib/m{number}"), format!("line {number}\n").repeat(100)))
        .collect();
    files.push(Member::file("lib/large", noise(&mut random, 3 << 20)));
    let base = tar(&files);
    let image =
        |text: &str| Image::new("amd64", &[base.clone(), layer(&format!("app={text}"))], Packing::Gzip);
    let (one, two) = (image("one"), image("two"));
    let entries = [named(&one.manifest, OCI_MANIFEST, "one"), named(&two.manifest, OCI_MANIFEST, "two")];
    Layout::new(dir, &entries).with(&one).with(&two)
}

struct Conversions {
    scratch: tempfile::TempDir,
}

impl Conversions {
    fn new() -> Conversions {
        let scratch = support::scratch();
        layout(&scratch.path().join("oci"));
        support::stdout(support::as_user("mkdir").arg("-m700").arg(scratch.path().join("cache")));
        Conversions { scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn command(&self, image: &str, dest: &str, args: &[&str]) -> Command {
        let source = format!("oci:{}:{image}", self.path("oci").display());
        let mut command = support::hpcrun(["convert", "-v", "--platform", "amd64", "--block-size", "16K"]);
        command.args(args).arg(source).arg(self.path(dest)).stdin(Stdio::null());
        command
    }

    fn cached(&self, image: &str, dest: &str) -> Command {
        let cache = self.path("cache");
        self.command(image, dest, &["--layer-cache", cache.to_str().unwrap()])
    }

    /// Converts; gives the file and what was said.
    fn run(&self, mut command: Command, dest: &str) -> (Vec<u8>, String) {
        let output = support::run(&mut command);
        let said = support::text(&output.stderr);
        assert!(output.status.success(), "{said}");
        (fs::read(self.path(dest)).unwrap(), said)
    }

    /// Everything in the cache but layers.
    fn leftovers(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("cache")).unwrap().map(|entry| entry.unwrap().file_name());
        names.map(|name| name.into_string().unwrap()).filter(|name| !name.ends_with(".layer")).collect()
    }
}

#[test]
fn the_binary_rebuilds_an_image_whose_upper_layer_changed() {
    let all = Conversions::new();
    let (expected, said) = all.run(all.command("two", "plain", &[]), "plain");
    assert!(!said.contains("cached"), "{said}");
    all.run(all.cached("one", "one"), "one");
    let (two, said) = all.run(all.cached("two", "two"), "two");
    assert!(two == expected && said.contains("in 2 layers (1 cached)"), "{said}");
    fs::remove_file(all.path("two")).unwrap();
    let (two, said) = all.run(all.cached("two", "two"), "two");
    assert!(two == expected && said.contains("in 2 layers (2 cached)"), "{said}");
    // The environment names a cache as well, and the flag says no.
    let ask = |dest: &str, args: &[&str]| {
        let mut command = all.command("two", dest, args);
        command.env("XDG_CACHE_HOME", all.path("xdg")).env("HPCRUN_LAYER_CACHE", "auto");
        all.run(command, dest).1
    };
    support::stdout(support::as_user("mkdir").arg(all.path("xdg")));
    assert!(!ask("a", &["--no-layer-cache"]).contains("cached"));
    assert_eq!(fs::read_dir(all.path("xdg")).unwrap().count(), 0);
    assert!(!ask("b", &[]).contains("cached"));
    assert!(ask("c", &[]).contains("(2 cached)"));
    let made = fs::metadata(all.path("xdg/hpcrun/layers")).unwrap();
    assert_eq!(made.permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_site_can_name_a_cache_for_everybody() {
    let all = Conversions::new();
    let site = support::scratch();
    fs::set_permissions(site.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let policy = site.path().join("policy.toml");
    let text = format!("[convert]\nlayer_cache = \"{}/cache/$USER\"\n", all.scratch.path().display());
    fs::write(&policy, &text).unwrap();
    let ask = |dest: &str, args: &[&str]| {
        let mut command = all.command("one", dest, args);
        all.run(
            {
                command.env("HPCRUN_POLICY", &policy);
                command
            },
            dest,
        )
        .1
    };
    ask("a", &["--no-layer-cache"]);
    assert_eq!(fs::read_dir(all.path("cache")).unwrap().count(), 0);
    ask("b", &[]);
    assert!(ask("c", &[]).contains("(2 cached)"));
    assert!(all.path("cache").join(TEST_USER).is_dir());
    fs::write(&policy, text.clone() + "layer_cache_size = 5000\n").unwrap();
    fs::remove_dir_all(all.path("cache").join(TEST_USER)).unwrap();
    ask("d", &["--layer-cache-size", "1G"]);
    assert!(ask("e", &[]).contains("(1 cached)"), "the larger of the two exceeds the site's limit");
    fs::write(&policy, "[convert]\nlayer_cache = \"/x/$NOWHERE\"\n").unwrap();
    assert!(ask("f", &[]).contains("no layer cache: $NOWHERE is not set"));
}

#[test]
fn order_warns_of_unknown_paths_in_one_line() {
    let all = Conversions::new();
    fs::write(all.path("list"), "lib/m1\nnone\n/lib\n").unwrap();
    let list = all.path("list");
    let (_, said) = all.run(all.command("one", "one", &["--order", list.to_str().unwrap()]), "one");
    let warning = format!("2 of the paths in {} are no regular file of the image", list.display());
    assert_eq!(said.matches(&warning).count(), 1, "{said}");
    let output = support::run(&mut all.command("one", "none", &["--order", "/nonexistent"]));
    let said = support::text(&output.stderr);
    assert!(!output.status.success() && said.contains("cannot read /nonexistent: No such file"), "{said}");
}

#[test]
fn processes_that_fill_one_cache_at_once_do_not_disturb_each_other() {
    for count in [2, 8] {
        let all = Conversions::new();
        let (one, _) = all.run(all.command("one", "plain1", &[]), "plain1");
        let (two, _) = all.run(all.command("two", "plain2", &[]), "plain2");
        let started: Vec<_> = (0..count)
            .map(|number| {
                let (image, dest) = (["one", "two"][number % 2], format!("out{number}"));
                let mut command = all.cached(image, &dest);
                (number, dest, command.stderr(Stdio::null()).spawn().unwrap())
            })
            .collect();
        for (number, dest, mut child) in started {
            assert!(child.wait().unwrap().success());
            assert!(fs::read(all.path(&dest)).unwrap() == *[&one, &two][number % 2], "{dest}");
        }
        assert_eq!(all.leftovers(), Vec::<String>::new());
        let (got, said) = all.run(all.cached("one", "after"), "after");
        assert!(got == one && said.contains("(2 cached)"), "{said}");
    }
}

/// Mounts a small tmpfs for the ordinary user; unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf, kib: u32) -> SmallDisk {
        let id = support::stdout(Command::new("id").args(["-u", TEST_USER]));
        let options = format!("size={kib}k,mode=700,uid={}", id.trim());
        support::stdout(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(&path));
        SmallDisk(path)
    }

    fn remount(&self, options: &str) {
        support::stdout(Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(&self.0));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

fn warnings(said: &str) -> Vec<&str> {
    said.lines().filter(|line| line.contains("the layers are not kept in")).collect()
}

#[test]
fn a_full_or_read_only_cache_costs_one_warning() {
    assert!(support::is_root(), "mounting a small disk needs root");
    let all = Conversions::new();
    let (expected, _) = all.run(all.command("one", "plain", &[]), "plain");
    let disk = SmallDisk::mount(all.path("cache"), 256);
    let (got, said) = all.run(all.cached("one", "full"), "full");
    assert!(got == expected && warnings(&said).len() == 1, "{said}");
    assert!(said.contains("No space left on device"), "{said}");
    assert_eq!(all.leftovers(), Vec::<String>::new());
    disk.remount("size=64m");
    all.run(all.cached("two", "two"), "two");
    disk.remount("ro");
    let (got, said) = all.run(all.cached("one", "readonly"), "readonly");
    assert!(got == expected && said.contains("(2 cached)") && warnings(&said).is_empty(), "{said}");
    let mut command = all.cached("one", "other");
    command.args(["--level", "1"]);
    let (_, said) = all.run(command, "other");
    assert_eq!(warnings(&said).len(), 1, "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    drop(disk);
    // A directory that is not the user's.
    support::stdout(Command::new("chown").arg("daemon").arg(all.path("cache")));
    fs::set_permissions(all.path("cache"), PermissionsExt::from_mode(0o755)).unwrap();
    let (got, said) = all.run(all.cached("one", "foreign"), "foreign");
    assert!(got == expected && said.contains("is not used: it belongs to another user"), "{said}");
    let (got, said) = all.run(all.command("one", "none", &["--layer-cache", "/proc/none"]), "none");
    assert!(got == expected && said.contains("cannot open the layer cache /proc/none: "), "{said}");
}

#[test]
fn cached_layers_are_not_fetched_from_a_registry() {
    let base = tar(&[Member::file("lib/a", noise(&mut Random::new(1), 100_000))]);
    let image = |text: &str| Image::new("amd64", &[base.clone(), layer(text)], Packing::Gzip);
    let all = Conversions::new();
    let pull = |image: Image, dest: &str, cache: bool| {
        let blobs: Vec<String> = image
            .layers
            .iter()
            .map(|layer| descriptor(&layer.blob, "")["digest"].as_str().unwrap().to_owned())
            .collect();
        let server = Scripted::of(image, |_, _, reply| reply);
        let mut command = support::hpcrun(["pull", "--platform", "amd64"]);
        if cache {
            command.arg("--layer-cache").arg(all.path("cache"));
        }
        command.arg(server.source()).arg(all.path(dest));
        support::stdout(&mut command);
        let counts: Vec<usize> = blobs.iter().map(|blob| server.log.count_of("GET", blob)).collect();
        (fs::read(all.path(dest)).unwrap(), counts)
    };
    let squashfs = |bytes: &[u8]| {
        let length = u64::from_le_bytes(bytes[40..48].try_into().unwrap());
        bytes[..length as usize].to_vec()
    };
    let (_, counts) = pull(image("app=1"), "one", true);
    assert_eq!(counts, [1, 1]);
    let (two, counts) = pull(image("app=2"), "two", true);
    assert_eq!(counts, [0, 1]);
    let (again, counts) = pull(image("app=2"), "again", true);
    assert_eq!(counts, [0, 0]);
    let (plain, counts) = pull(image("app=2"), "plain", false);
    assert_eq!(counts, [1, 1]);
    // The trailers name registries with different ports.
    assert!(squashfs(&two) == squashfs(&plain) && squashfs(&again) == squashfs(&plain));
}

#[test]
fn a_killed_conversion_leaves_nothing_that_stays() {
    let all = Conversions::new();
    let abandoned = all.path("cache/.hpcrun-elsewhere-1-1.partial");
    support::stdout(support::as_user("touch").args(["-d", "2 days ago"]).arg(&abandoned));
    all.run(all.cached("one", "one"), "one");
    assert_eq!(all.leftovers(), Vec::<String>::new());
    let fresh = all.path("cache/.hpcrun-elsewhere-1-2.partial");
    File::create(&fresh).unwrap().write_all_at(b"in use", 0).unwrap();
    all.run(all.cached("two", "two"), "two");
    assert_eq!(all.leftovers(), [".hpcrun-elsewhere-1-2.partial"]);
}

//! The merge as its rules are usually told: from the bottom up, whole trees copied at every step, nothing clever.

use std::collections::BTreeMap;

use crate::support::Random;

/// A tree: path to what is there. The root is not listed.
type Tree = BTreeMap<String, Node>;

#[derive(Debug, Clone, PartialEq)]
enum Node {
    /// With its metadata once an entry gave it.
    Directory(Option<String>),
    /// A leaf: a number that its other names share, and what it looks like.
    Leaf(u32, String),
    /// The same, linked from a layer below: what it is cannot be seen from this layer.
    Lower(u32, String),
    /// A hard link to a path that was not there yet.
    Later(String),
}

/// Merges layers in words, bottom first; the result in words.
pub(crate) fn merge(stack: &[Vec<String>]) -> Result<String, String> {
    let mut tree = Tree::new();
    let mut inodes = 0;
    for words in stack {
        tree = apply(&tree, words, &mut inodes)?;
    }
    let mut first: BTreeMap<u32, &str> = BTreeMap::new();
    let mut words = Vec::new();
    // Sorted by bytes with '/' in front of the path, as the tree under test is listed.
    for (path, node) in &tree {
        words.push(match node {
            Node::Directory(meta) => format!("{path}/{}", meta.as_deref().unwrap_or_default()),
            Node::Leaf(inode, _) if first.contains_key(inode) => format!("{path}=={}", first[inode]),
            Node::Leaf(inode, look) => {
                first.insert(*inode, path);
                format!("{path}{look}")
            }
            Node::Lower(..) | Node::Later(_) => return Err("unresolved".to_owned()),
        });
    }
    Ok(words.join(" "))
}

fn apply(lower: &Tree, words: &[String], inodes: &mut u32) -> Result<Tree, String> {
    // First whiteouts, on the layers below only.
    let mut base = lower.clone();
    let mut entries = Vec::new();
    for word in words {
        let path = word.split(['=', '-', '!', '@']).next().unwrap_or_default().trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        if name == ".wh..wh..opq" {
            base.retain(|path, _| !is_below(path, parent));
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            let hidden = join(parent, hidden);
            base.retain(|path, _| *path != hidden && !is_below(path, &hidden));
        } else {
            entries.push(word.as_str());
        }
    }
    // Then the layer's own entries, in order, on nothing.
    let mut own = Tree::new();
    let mut promised = Vec::new();
    for word in entries {
        apply_entry(&mut own, lower, word, inodes, &mut promised)?;
    }
    // A link without a target is an error even if something else took its name since.
    for target in promised {
        if matches!(own.get(&target), None | Some(Node::Directory(_))) {
            return Err(format!("no {target}"));
        }
    }
    resolve_later(&mut own)?;
    // Then one tree on the other.
    for (path, node) in own {
        match (&node, base.get_mut(&path)) {
            // The topmost entry for a directory gives all its metadata.
            (Node::Directory(meta), Some(Node::Directory(lower))) => {
                *lower = meta.clone().or(lower.take());
            }
            _ => {
                base.retain(|other, _| !is_below(other, &path));
                base.insert(path, node);
            }
        }
    }
    Ok(base)
}

fn apply_entry(
    own: &mut Tree,
    lower: &Tree,
    word: &str,
    inodes: &mut u32,
    promised: &mut Vec<String>,
) -> Result<(), String> {
    let name_end = word.find(['=', '-', '!', '@']).unwrap_or(word.len());
    let (path, rest) = word.split_at(name_end);
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let parent = follow(own, parent)?;
    make_directories(own, &parent)?;
    let path = join(&parent, name);
    let node = if let Some(target) = rest.strip_prefix("=>") {
        link(own, lower, target, promised)?
    } else if rest.is_empty() || rest.starts_with('@') {
        Node::Directory(Some(rest.to_owned()))
    } else {
        Node::Leaf(new(inodes), rest.to_owned())
    };
    if !matches!((&node, own.get(&path)), (Node::Directory(_), Some(Node::Directory(_)))) {
        own.retain(|other, _| !is_below(other, &path));
    }
    own.insert(path, node);
    Ok(())
}

fn link(own: &Tree, lower: &Tree, target: &str, promised: &mut Vec<String>) -> Result<Node, String> {
    let (parent, name) = target.rsplit_once('/').unwrap_or(("", target));
    let target = join(&follow(own, parent)?, name);
    let ancestors = target.match_indices('/').map(|(at, _)| &target[..at]);
    if ancestors.into_iter().any(|path| own.get(path).is_some_and(|node| !matches!(node, Node::Directory(_))))
    {
        return Err(format!("{target}: not a directory"));
    }
    match own.get(&target) {
        Some(Node::Directory(_)) => Err(format!("{target} is a directory")),
        Some(leaf) => Ok(leaf.clone()),
        None => match lower.get(&target) {
            Some(Node::Leaf(inode, look)) => Ok(Node::Lower(*inode, look.clone())),
            _ => {
                promised.push(target.clone());
                Ok(Node::Later(target))
            }
        },
    }
}

/// Links that came before their target.
fn resolve_later(own: &mut Tree) -> Result<(), String> {
    let names: Vec<String> = own.keys().cloned().collect();
    for name in names {
        let mut node = own[&name].clone();
        let mut steps = 0;
        while let Node::Later(target) = &node {
            steps += 1;
            node = match own.get(target) {
                Some(Node::Directory(_)) | None => return Err(format!("{name}: no {target}")),
                Some(_) if steps > own.len() => return Err(format!("{name}: a circle")),
                Some(next) => next.clone(),
            };
        }
        if let Node::Lower(inode, look) = node {
            node = Node::Leaf(inode, look);
        }
        own.insert(name, node);
    }
    Ok(())
}

/// Where a directory's name leads, symbolic links of this layer followed.
fn follow(own: &Tree, path: &str) -> Result<String, String> {
    let mut todo: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut at = String::new();
    let mut links = 0;
    while let Some(step) = todo.pop() {
        match step.as_str() {
            "" | "." => continue,
            ".." => {
                at = at.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned());
                continue;
            }
            _ => {}
        }
        let next = join(&at, &step);
        match own.get(&next) {
            Some(Node::Leaf(_, look)) if look.starts_with("->") => {
                links += 1;
                if links > 40 {
                    return Err("too many links".to_owned());
                }
                let target = look[2..].split('@').next().unwrap_or_default();
                if target.starts_with('/') {
                    at = String::new();
                }
                todo.extend(target.split('/').rev().map(str::to_owned));
            }
            _ => at = next,
        }
    }
    Ok(at)
}

fn make_directories(own: &mut Tree, path: &str) -> Result<(), String> {
    let mut at = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        at = join(&at, name);
        if !matches!(own.entry(at.clone()).or_insert(Node::Directory(None)), Node::Directory(_)) {
            return Err(format!("{at} is not a directory"));
        }
    }
    Ok(())
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

fn is_below(path: &str, parent: &str) -> bool {
    parent.is_empty() || path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'))
}

fn new(inodes: &mut u32) -> u32 {
    *inodes += 1;
    *inodes
}

/// Which stacks are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// All that can be said with a few names.
    Any,
    /// Only what every tool writes: parents come first as directories, whiteouts before entries, no links to links.
    Conservative,
}

/// A stack of layers in words, bottom first. Most layers that would be refused are thrown away: a stack ends at the
/// first of them.
pub(crate) fn generate(random: &mut Random, shape: Shape) -> Vec<Vec<String>> {
    let mut stack = Vec::new();
    for number in 0..1 + random.below(5) {
        let mut attempts = random.below(12);
        loop {
            stack.push(generate_layer(random, shape, number));
            if attempts == 0 || merge(&stack).is_ok() {
                break;
            }
            attempts -= 1;
            stack.pop();
        }
    }
    stack
}

fn generate_layer(random: &mut Random, shape: Shape, number: u64) -> Vec<String> {
    if shape == Shape::Conservative {
        return generate_conservative(random, number);
    }
    let count = random.below(9);
    (0..count)
        .map(|index| {
            let path = any_path(random);
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
            match random.below(20) {
                0..5 => format!("{path}/"),
                5..10 => format!("{path}={number}.{index}"),
                10..13 => format!("{path}=>{}", any_path(random)),
                13..15 => {
                    let targets = ["a", "b", "../b", "/c", "a/b", "..", "/a/b"];
                    format!("{path}->{}", targets[random.below(targets.len() as u64) as usize])
                }
                15..18 => join(parent, &format!(".wh.{name}")),
                _ => join(&path, ".wh..wh..opq"),
            }
        })
        .collect()
}

/// Gives entries metadata (`@MODE:UID:XATTR`), and makes some files devices, pipes and sparse files.
pub(crate) fn enrich(stack: &mut [Vec<String>], random: &mut Random) {
    for word in stack.iter_mut().flatten() {
        let name = word.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
        if name.starts_with(".wh.") || word.contains("=>") {
            continue;
        }
        if word.contains('=') && random.below(3) == 0 {
            let path = word.split('=').next().unwrap_or_default().to_owned();
            let kinds = ["=~sparse", "!c1,3", "!b7,300", "!p"];
            *word = path + kinds[random.below(4) as usize];
        }
        if random.below(2) == 0 {
            let modes = if word.contains("->") { ["777"; 3] } else { ["4711", "700", "1777"] };
            let (mode, uid) = (modes[random.below(3) as usize], [0, 7, 70_000][random.below(3) as usize]);
            // A link of root's is one without metadata.
            let uid = if word.contains("->") { uid.max(7) } else { uid };
            // Only files and directories may have such attributes once they are unpacked.
            let xattr = if word.contains("->") || word.contains('!') {
                ""
            } else {
                ["", "1", "22"][random.below(3) as usize]
            };
            *word += &format!("@{mode}:{uid}:{xattr}");
        }
    }
}

fn any_path(random: &mut Random) -> String {
    let depth = 1 + random.below(3);
    (0..depth).map(|_| ["a", "b", "c"][random.below(3) as usize]).collect::<Vec<_>>().join("/")
}

/// `a` and `b` are always directories with `x`, `y`, `z` and one level of `sub` in them; files and links have other
/// names. So no parent is ever a symbolic link or a file, where runtimes differ.
fn generate_conservative(random: &mut Random, number: u64) -> Vec<String> {
    let (mut whiteouts, mut entries) = (Vec::new(), Vec::new());
    let mut written = Vec::new();
    for directory in ["a", "b", "a/sub"] {
        if random.below(3) == 0 {
            continue;
        }
        let is_opaque = random.below(5) == 0;
        entries.push(format!("{directory}/"));
        if is_opaque {
            whiteouts.push(format!("{directory}/.wh..wh..opq"));
        }
        for name in ["x", "y", "z"] {
            let path = format!("{directory}/{name}");
            match random.below(8) {
                0 | 1 => {
                    entries.push(format!("{path}={number}"));
                    written.push(path);
                }
                2 => entries.push(format!("{path}->../{name}")),
                3 if !written.is_empty() => {
                    let target = &written[random.below(written.len() as u64) as usize];
                    entries.push(format!("{path}=>{target}"));
                }
                4 if !is_opaque && number > 0 => whiteouts.push(format!("{directory}/.wh.{name}")),
                _ => {}
            }
        }
    }
    if number > 0 && random.below(6) == 0 && !entries.iter().any(|word| word.starts_with("b/")) {
        whiteouts.push(".wh.b".to_owned());
    }
    [whiteouts, entries].concat()
}

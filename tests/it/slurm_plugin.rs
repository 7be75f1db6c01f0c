//! Slurm's plugin: `srun --image=IMAGE COMMAND` is `srun hpcrun exec IMAGE COMMAND`, and a mistake harms one task at most.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::busybox_image::image;
use crate::slurm_cluster::{Cluster, plugin_file};
use crate::support::{binary, run, scratch, stdout, text};

/// `srun WORDS... --image=IMAGE sh -c SCRIPT` on the cluster that has hpcrun.
fn in_image(words: &str, script: &str) -> Output {
    let image = format!("--image={}", image().display());
    let words: Vec<&str> = words.split_whitespace().collect();
    run(Cluster::plain().user("srun").arg(image).args(words).args(["sh", "-c", script]))
}

#[track_caller]
fn success(output: &Output) -> String {
    assert!(output.status.success(), "{}: {}", output.status, text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn an_option_is_the_same_as_the_command() {
    let cluster = Cluster::plain();
    let (program, image) = (binary().display(), image().display());
    let pairs = [
        (String::new(), String::new()),
        (
            "--image-bind=/usr:/host:ro,/etc:/host-etc".to_owned(),
            "--bind=/usr:/host:ro,/etc:/host-etc".to_owned(),
        ),
        (r"--image-env=ONE=1,TWO=2\,3,HOME".to_owned(), "--env=ONE=1 --env=TWO=2,3 --env=HOME".to_owned()),
        ("--image-cwd=/work --image-no-home".to_owned(), "--cwd=/work --no-home".to_owned()),
        ("--image-options=--contain".to_owned(), "--contain".to_owned()),
    ];
    // What a step has of its own is left out.
    let script = "pwd; id -u; umask; ulimit -n; grep -c . /proc/self/mountinfo; ls /; \
                  env | grep -v -E '^(SLURM_|SLURMD_|SRUN_|TMPDIR|_=)' | grep -E '^[A-Z]' | sort";
    let script = script.replace(" | sort", "");
    let sorted = |output: &Output| {
        let text = success(output);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    for (option, word) in pairs {
        let by_option = sorted(&in_image(&option, &script));
        let words = format!("{program} exec {word} {image}");
        let by_command = sorted(&cluster.srun(&words, &["sh", "-c", &script]));
        assert_eq!(by_option, by_command, "{option}");
    }
}

#[test]
fn words_arrive_as_they_were_typed() {
    let image = format!("--image={}", image().display());
    let words = ["a b", "", "--image=none", "*", "$HOME", "a\nb", "\"", "--"];
    let output = run(Cluster::plain()
        .user("srun")
        .args(["-n1", &image, "sh", "-c", "for word; do echo \"<$word>\"; done", "sh"])
        .args(words));
    let expected: String = words.iter().map(|word| format!("<{word}>\n")).collect();
    assert_eq!(success(&output), expected);
}

#[test]
fn prolog_and_limits_of_the_task_are_kept() {
    let dir = scratch();
    let prolog = dir.path().join("prolog");
    fs::write(&prolog, "#!/bin/sh\necho print prolog\necho export FROM_PROLOG=yes\n").expect("prolog");
    fs::set_permissions(&prolog, PermissionsExt::from_mode(0o755)).expect("chmod");
    let image = format!("--image={}", image().display());
    let output = run(Cluster::plain()
        .user("prlimit")
        .args(["--nofile=777:888", "srun", "-n1", &image, "--propagate=NOFILE", "--task-prolog"])
        .arg(&prolog)
        .args(["sh", "-c", "ulimit -n; echo $FROM_PROLOG"]));
    assert_eq!(success(&output), "prolog\n777\nyes\n");
}

#[test]
fn the_image_of_a_job_is_its_steps_default() {
    let image = format!("--image={}", image().display());
    let script = "#!/bin/sh
test -n \"$GREETING\" && echo script inside
srun sh -c 'echo step $GREETING'
srun --image=none sh -c 'echo none $GREETING'
srun --image=none sh -c 'env | grep -c HPCRUN_TASK; true'
";
    let written = Cluster::plain().sbatch(&["-n1", &image], script);
    assert_eq!(written, "step hello world\nnone\n0\n");

    let script = "#!/bin/sh\necho \"$GREETING $*\"; test -e /usr/bin || echo no host\n";
    let written = Cluster::plain().sbatch(&["-n1", &image, "--image-script"], script);
    assert_eq!(written, "hello world \nno host\n");

    let output = run(Cluster::plain().user("salloc").args(["--quiet", "-n1", &image]).args([
        "sh",
        "-c",
        "echo shell $GREETING; srun sh -c 'echo step $GREETING'",
    ]));
    assert_eq!(success(&output), "shell\nstep hello world\n");
}

#[test]
fn a_variable_stands_for_an_option() {
    let cluster = Cluster::plain();
    let mut srun = cluster.user("srun");
    srun.env("SLURM_IMAGE", image())
        .env("SLURM_IMAGE_ENV", "MARK=variable")
        .env("SLURM_IMAGE_NO_HOME", "yes");
    let script = "echo $MARK $GREETING; ls -d /home/*";
    let output = run(srun.args(["-n1", "sh", "-c", script]));
    assert_eq!(text(&output.stdout), "variable hello world\n", "{}", text(&output.stderr));

    let mut srun = cluster.user("srun");
    srun.env("SLURM_IMAGE", image()).args(["-n1", "--image=none", "sh", "-c", "echo $MARK $GREETING."]);
    assert_eq!(stdout(&mut srun), ".\n");
}

#[test]
fn a_mistake_ends_the_task_with_a_message_and_nothing_else() {
    let cluster = Cluster::plain();
    let dir = scratch();
    let programs = dir.path().join("programs");
    fs::write(&programs, "0 echo zero\n1 echo one\n").expect("programs");
    let multi = format!("-n2 --image={} --multi-prog {}", image().display(), programs.display());
    let mistakes = [
        ("-n1 --image= true", None, "--image: wants a value"),
        ("-n1 --image=-x true", None, "--image: not an image file's name"),
        ("-n1 --image=/no/such.sqsh true", Some(125), "/no/such.sqsh"),
        ("-n1 --image=/etc/passwd true", Some(125), "/etc/passwd"),
        ("-n1 --image=/etc/passwd --image-options=--no-such-option true", Some(125), "--no-such-option"),
        (&multi, Some(125), "--multi-prog"),
    ];
    for (words, status, message) in mistakes {
        let output = cluster.srun(words, &[]);
        let stderr = text(&output.stderr);
        assert!(!output.status.success(), "{words}: {stderr}");
        assert!(stderr.contains(message), "{words}: {stderr}");
        assert!(status.is_none_or(|status| output.status.code() == Some(status)), "{words}: {output:?}");
        assert_eq!(text(&output.stdout), "", "{words}: nothing runs on the host instead");
        cluster.assert_well();
    }

    // On this one plugstack.conf names an hpcrun that is not there.
    let cluster = Cluster::confined();
    let output = cluster.srun(&format!("-n1 --image={} true", image().display()), &[]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(text(&output.stderr).contains("cannot run /no/such/hpcrun"), "{output:?}");
    cluster.assert_well();
    assert_eq!(success(&cluster.srun("-n1 echo well", &[])), "well\n");
}

/// A Slurm that can add words to a task's, from 23.11 on: the few calls that the plugin makes of it.
const NEWER_SLURM: &str = r#"
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
struct option { char *name, *arginfo, *usage; int has_arg, val; int (*cb)(int, const char *, int); };
static struct option *options[64];
static int count;
static char *argv_of_task[] = { "./solver", "-n", "4", NULL };
int spank_context(void) { return 2; }
int spank_option_register(void *spank, struct option *option) { options[count++] = option; return 0; }
int spank_getenv(void *spank, const char *name, char *value, int size) { return 3001; }
int spank_setenv(void *spank, const char *name, const char *value, int over) { puts("setenv"); return 0; }
int spank_get_item(void *spank, int item, ...) {
    va_list list;
    va_start(list, item);
    if (item == 3) *va_arg(list, uint32_t *) = 0;
    if (item == 9) { *va_arg(list, int *) = 3; *va_arg(list, char ***) = argv_of_task; }
    va_end(list);
    return 0;
}
int spank_prepend_task_argv(void *spank, int argc, const char *argv[]) {
    for (int i = 0; i < argc; i++) puts(argv[i]);
    return argv[argc] == NULL && strcmp(argv_of_task[0], "./solver") == 0 ? 0 : 1;
}
void slurm_error(const char *format, ...) { va_list l; va_start(l, format); vfprintf(stderr, format, l); va_end(l); }
int main(int argc, char **argv) {
    void *plugin = dlopen(argv[1], RTLD_LAZY);
    if (plugin == NULL) { puts(dlerror()); return 1; }
    int (*init)(void *, int, char **) = dlsym(plugin, "slurm_spank_init");
    int (*task_init)(void *, int, char **) = dlsym(plugin, "slurm_spank_task_init");
    printf("%s %s %x %u\n", (char *)dlsym(plugin, "plugin_name"), (char *)dlsym(plugin, "plugin_type"),
           *(unsigned *)dlsym(plugin, "plugin_version"), *(unsigned *)dlsym(plugin, "spank_plugin_version"));
    if (init(NULL, 1, argv + 2) != 0) return 2;
    for (int i = 3; i + 1 < argc; i += 2)
        for (int j = 0; j < count; j++)
            if (strcmp(options[j]->name, argv[i]) == 0 && options[j]->cb(options[j]->val, argv[i + 1], 1) != 0) return 3;
    return task_init(NULL, 1, argv + 2);
}
"#;

#[test]
fn a_newer_slurm_is_asked_to_add_the_words() {
    let dir = scratch();
    let (source, program) = (dir.path().join("slurm.c"), dir.path().join("slurm"));
    fs::write(&source, NEWER_SLURM).expect("source");
    stdout(Command::new("gcc").args(["-rdynamic", "-o"]).arg(&program).arg(&source).arg("-ldl"));
    let hpcrun = format!("hpcrun={}", binary().display());
    let slurm = |words: &[&str]| run(Command::new(&program).arg(plugin_file()).arg(&hpcrun).args(words));

    let header = fs::read_to_string("/usr/include/slurm/slurm_version.h").expect("libslurm-dev");
    let version = header.lines().find_map(|line| line.strip_prefix("#define SLURM_VERSION_NUMBER 0x"));
    let first = format!("hpcrun spank {} 1\n", version.expect("a version").trim());
    let expected = format!("{first}{}\nexec\n--bind=/a,/b\n--no-home\napp.sqsh\n", binary().display());
    let output = slurm(&["image", "app.sqsh", "image-bind", "/a,/b", "image-no-home", ""]);
    assert_eq!(success(&output), expected);
    assert_eq!(success(&slurm(&[])), first, "a task without an image is left alone");
    assert_eq!(slurm(&["image", ""]).status.code(), Some(3), "a wrong value is refused");
}

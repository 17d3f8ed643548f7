use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use podvisor_devices::fs::Writes;

use super::*;
use crate::sandbox::tests::fake::Guest;
use crate::sandbox::tests::fake_host::FakeHost;

/// A pod's folder as the kubelet makes it: a ConfigMap, an emptyDir, and a folder of the host.
fn pod() -> tempfile::TempDir {
    let pod = tempfile::tempdir().unwrap();
    let config = pod.path().join("volumes/kubernetes.io~configmap/config");
    fs::create_dir_all(config.join("..2026")).unwrap();
    symlink("..2026", config.join("..data")).unwrap();
    let cache = pod.path().join("volumes/kubernetes.io~empty-dir/cache");
    fs::create_dir_all(cache.join("part")).unwrap();
    fs::create_dir(pod.path().join("host")).unwrap();
    pod
}

const CONFIG: &str = "volumes/kubernetes.io~configmap/config";
const CACHE: &str = "volumes/kubernetes.io~empty-dir/cache";
const HOST: &str = "host";

/// The plan for mounts of (destination, path in the pod's folder, access).
fn plan(pod: &tempfile::TempDir, mounts: &[(&str, &str, &str)]) -> Result<VolumePlan, TaskError> {
    let mounts: Vec<_> = mounts
        .iter()
        .map(|(destination, path, access)| {
            serde_json::json!({
                "destination": destination, "type": "bind", "source": pod.path().join(path),
                "options": ["rbind", "rprivate", access],
            })
        })
        .collect();
    plan_of(&mounts)
}

fn plan_of(mounts: &[serde_json::Value]) -> Result<VolumePlan, TaskError> {
    let spec = serde_json::json!({"ociVersion": "1.1.0", "mounts": mounts});
    let spec: Spec = serde_json::from_value(spec).unwrap();
    let host = FakeHost(Arc::new(Guest::default()));
    VolumePlan::of(&spec, &host, &[Path::new("/disk")])
}

#[test]
fn volumes_are_shared_by_names_of_their_places() {
    let pod = pod();
    let mounts = [
        ("/etc/hosts", HOST, "rw"),
        ("/disk", HOST, "rw"),
        ("/etc/app", CONFIG, "ro"),
        ("/srv/data.d", HOST, "rw"),
        ("/srv-data.d", CACHE, "ro"),
    ];
    let (shared, volumes) = plan(&pod, &mounts).unwrap().into_parts();
    let names: Vec<_> = shared.iter().map(|folder| folder.name.as_str()).collect();
    assert_eq!(names, ["etc-app", "srv-data.d", "srv-data.d-2"]);
    let writes: Vec<_> = shared.iter().map(|folder| folder.options.writes).collect();
    assert_eq!(
        writes,
        [Writes::Nothing, Writes::Everything, Writes::Nothing]
    );
    let targets: Vec<_> = volumes
        .iter()
        .map(|volume| {
            let source = volume.content.source();
            (
                volume.target.as_str(),
                volume.read_only,
                source.display().to_string(),
            )
        })
        .collect();
    let at = |folder: &str, name: &str| format!("{folder}/{name}");
    assert_eq!(
        targets,
        [
            ("/etc/app", true, at(MIRROR_DIR, "etc-app")),
            ("/srv/data.d", false, at(SHARED_DIR, "srv-data.d")),
            ("/srv-data.d", true, at(SHARED_DIR, "srv-data.d-2")),
        ]
    );
    let note = note(&volumes).unwrap();
    assert!(note.contains("/etc/app (etc-app, read-only), /srv/data.d (srv-data.d)"));
    assert!(note.contains("mount -t virtiofs podvisor "), "{note}");
}

#[test]
fn parts_of_an_empty_dir_are_of_one_share_that_the_boldest_decides() {
    let pod = pod();
    let part = format!("{CACHE}/part");
    let mounts = [("/all", CACHE, "ro"), ("/part", part.as_str(), "rw")];
    let (shared, volumes) = plan(&pod, &mounts).unwrap().into_parts();
    assert_eq!(shared.len(), 1);
    assert_eq!(shared[0].options.writes, Writes::Everything);
    assert_eq!(shared[0].options.cache, CachePolicy::Always);
    let source = volumes[1].content.source();
    assert_eq!(source, Path::new(SHARED_DIR).join("all/part"));
    assert!(volumes[0].read_only && !volumes[1].read_only);
}

#[test]
fn places_of_a_machines_system_are_refused_and_others_are_not() {
    let pod = pod();
    for place in [
        "/",
        "/etc",
        "/usr/",
        "/usr/lib",
        "/dev/x",
        "/dev/shm/x",
        "/proc/1",
        "/run/podvisor/shared",
        "/srv/../etc",
    ] {
        let refused = plan(&pod, &[(place, HOST, "rw")]);
        let error = crate::sandbox::chain(&refused.err().expect(place));
        assert!(error.starts_with("mounts: "), "{error}");
    }
    for place in [
        "/etc/app",
        "/usr/local",
        "/var/run/secrets/x",
        "/home",
        "/root",
    ] {
        plan(&pod, &[(place, HOST, "rw")]).expect(place);
    }
}

#[test]
fn a_pod_without_volumes_shares_nothing() {
    // As containerd mounts the pod's shared memory, and as we do where it does not.
    let mounts = ["/run/containerd/sandboxes/0a1b/shm", "podvisor-shm"].map(|source| {
        serde_json::json!({
            "destination": "/dev/shm", "type": "bind", "source": source, "options": ["rbind"],
        })
    });
    let (shared, volumes) = plan_of(&mounts).unwrap().into_parts();
    assert!(shared.is_empty() && volumes.is_empty());
    assert_eq!(note(&volumes), None);
}

#[test]
fn a_volume_in_place_of_shared_memory_is_one() {
    let pod = pod();
    let mounts = [("/dev/shm", CACHE, "rw")];
    let (shared, volumes) = plan(&pod, &mounts).unwrap().into_parts();
    assert_eq!(shared[0].name, "dev-shm");
    let at = Content::At(Path::new(SHARED_DIR).join("dev-shm"));
    assert_eq!(volumes[0].content, at);
    assert_eq!(volumes[0].target, "/dev/shm");
}

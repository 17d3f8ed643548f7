//! Images: pulled under any name, listed and removed, and what they say of their containers.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podvisor_proto::cri::v1::{Image, ImageFilter, ListImagesRequest};
use podvisor_tests::registry::{Form, Layout};
use podvisor_tests::{Container, ContainerBuilder, Cri, Handler, PodBuilder};
use serde_json::{Value, json};

use crate::case::{Case, beside_runc, long};

const MERGED_IMAGE: &str = "registry.example/suite/merged:1";

pub fn cases() -> Vec<Case> {
    vec![
        beside_runc("what_images_say_is_merged_with_the_pods_word", merged),
        // containerd and the registry alone serve it, and in a full run it is not steady yet.
        long("images_of_any_name_are_pulled_and_removed", any_name),
    ]
}

fn merged(cri: &Cri, handler: Handler) -> Result<()> {
    let layout = Layout::create()?;
    let config = json!({
        "Env": ["PATH=/bin:/usr/bin", "FROM=image", "KEPT=yes"],
        "Entrypoint": ["sh", "-c", "pwd; id -u; id -g; echo $FROM $KEPT $HOME; echo \"$0 $@\"; sleep 1000"],
        "Cmd": ["zero", "one two"],
        "WorkingDir": "/made/by/image",
        "User": "app",
        "Volumes": {"/anonymous": {}},
    });
    layout.add(Form::Oci, config, &[MERGED_IMAGE])?;
    let pod = PodBuilder::new(cri, handler, "merged").run()?;
    let builder = |name: &str| pod.container(name).image(MERGED_IMAGE).command(&[]);
    let image = builder("image").start()?;
    ensure_says(
        &image,
        "/made/by/image\n1000\n1000\nimage yes /home/app\nzero one two\n",
    )?;
    ensure!(
        image.shell("stat -c %u:%a /made/by/image; stat -c %F /anonymous")? == "0:755\ndirectory",
        "working folder and volume: {}",
        image.shell("ls -lad /made/by/image /anonymous")?
    );
    let arguments = builder("arguments").arguments(&["none"]);
    let arguments = arguments
        .env("FROM", "pod")
        .working_dir("/made/by/pod/$FROM")
        .user(0, 7, &[])
        .start()?;
    ensure_says(
        &arguments,
        "/made/by/pod/$FROM\n0\n7\npod yes /root\nnone \n",
    )?;
    let command = pod.container("command").image(MERGED_IMAGE);
    let command = command.command(&["sh", "-c", "echo $0 $#; sleep 1000"]);
    ensure_says(&command.start()?, "sh 0\n")?;
    drop((image, arguments));
    cri.remove_image(MERGED_IMAGE)
}

fn ensure_says(container: &Container<'_, '_>, expected: &str) -> Result<()> {
    let mut said = String::new();
    podvisor_tests::wait::until("output", Duration::from_secs(20), || {
        said = container.log()?.stdout;
        Ok((said == expected).then_some(()))
    })
    .with_context(|| format!("it said {said:?} instead of {expected:?}"))
}

fn config(of: &str) -> Value {
    json!({"Env": ["PATH=/bin", format!("OF={of}")], "Cmd": ["sh", "-c", "echo $OF"]})
}

/// What the CRI validation suite asks of images, and every form that a registry may have them in.
fn any_name(cri: &Cri) -> Result<()> {
    let layout = Layout::create()?;
    let names = [
        "gcr.io/k8s-staging-cri-tools/test-image-tags:1",
        "gcr.io/k8s-staging-cri-tools/test-image-tags:2",
        "gcr.io/k8s-staging-cri-tools/test-image-tags:3",
    ];
    let digest = layout.add(Form::Oci, config("tags"), &names)?;
    tags(cri, &names)?;
    by_digest(
        cri,
        &format!("gcr.io/k8s-staging-cri-tools/test-image-digest@{digest}"),
    )?;
    let pod = PodBuilder::new(cri, Handler::Runc, "images").run()?;
    for (form, name, full) in [
        (
            Form::Docker,
            "suite-short",
            "docker.io/library/suite-short:latest",
        ),
        (
            Form::Index,
            "localhost:5000/suite/index:v1.2",
            "localhost:5000/suite/index:v1.2",
        ),
        (
            Form::Oci,
            "[fd00::1]:8443/suite/six:1",
            "[fd00::1]:8443/suite/six:1",
        ),
    ] {
        layout.add(form, config(name), &[full])?;
        let container = pod.container(&format!("{form:?}"));
        pulled_and_run(cri, container, name, full).with_context(|| format!("{form:?} {name}"))?;
    }
    let unknown = cri.pull_image("registry.example/no/such:image").err();
    let unknown = format!("{:#}", unknown.context("pulled what is not there")?);
    ensure!(
        unknown.contains("registry.example/no/such:image"),
        "{unknown}"
    );
    let none = "0".repeat(64);
    cri.remove_image(&none)?;
    cri.remove_image(&none).context("second removal")
}

fn pulled_and_run(
    cri: &Cri,
    container: ContainerBuilder<'_, '_>,
    name: &str,
    full: &str,
) -> Result<()> {
    let reference = cri.pull_image(name)?;
    let image = cri.image(name)?.context("not there")?;
    ensure!(image.id == reference, "{reference} is not {image:?}");
    ensure!(image.repo_tags == [full], "tags: {image:?}");
    ensure!(image.size > 0, "no size: {image:?}");
    let container = container.image(name).command(&[]).start()?;
    // containerd 2.1 does not remove one that is just ending.
    container.wait(Duration::from_secs(60))?;
    ensure_says(&container, &format!("{name}\n"))?;
    container.remove()?;
    cri.remove_image(&image.id)?;
    ensure!(cri.image(name)?.is_none(), "there after its removal");
    Ok(())
}

/// Several tags of one image, every one of which leads to it until it is removed.
fn tags(cri: &Cri, names: &[&str]) -> Result<()> {
    let mut ids = names
        .iter()
        .map(|name| cri.pull_image(name))
        .collect::<Result<Vec<_>>>()?;
    ids.dedup();
    ensure!(ids.len() == 1, "one image has several ids: {ids:?}");
    let id = ids.first().context("no image")?;
    let listed = list(cri)?;
    let found: Vec<&Image> = listed.iter().filter(|image| image.id == *id).collect();
    let &[image] = found.as_slice() else {
        anyhow::bail!("the image is listed {} times", found.len());
    };
    let mut tags = image.repo_tags.clone();
    tags.sort_unstable();
    ensure!(tags == names, "tags: {tags:?}");
    for reference in tags.iter().chain(&image.repo_digests).chain([id]) {
        let same = cri.image(reference)?.is_some_and(|same| same.id == *id);
        ensure!(same, "{reference} leads elsewhere");
    }
    cri.remove_image(id)?;
    for name in names {
        ensure!(
            cri.image(name)?.is_none(),
            "{name} is there after its removal"
        );
    }
    ensure!(list(cri)?.iter().all(|image| image.id != *id), "listed");
    Ok(())
}

fn by_digest(cri: &Cri, name: &str) -> Result<()> {
    cri.pull_image(name)?;
    let image = cri.image(name)?.context("not there")?;
    ensure!(
        image.repo_tags.is_empty() && image.repo_digests == [name],
        "{image:?}"
    );
    cri.remove_image(&image.id)
}

fn list(cri: &Cri) -> Result<Vec<Image>> {
    let request = ListImagesRequest {
        filter: Some(ImageFilter::default()),
    };
    let answer = cri.call_images(
        "ListImages",
        |mut c| async move { c.list_images(request).await },
    )?;
    Ok(answer.images)
}

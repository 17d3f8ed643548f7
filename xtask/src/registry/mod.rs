//! A read-only image registry on loopback for the test node.
//!
//! It serves OCI image layouts from folders under the full names that their index gives them (registry.k8s.io/pause:3.10), whatever
//! registry containerd believes it talks to: containerd's `certs.d/_default` leads every name here and passes the
//! original host as `?ns=`. Layouts are read on every request, so a folder may gain images while the node runs.
//!
//! The node is given this program itself, which is there already: `xtask registry FOLDER…`.

mod http;
mod layouts;

use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;

use http::{Request, Response};
use layouts::Layouts;

const ADDRESS: &str = "127.0.0.1:5000";

/// Serves layouts, or folders of layouts, until the process is ended.
///
/// # Errors
/// The address is taken.
pub fn serve_all(folders: Vec<PathBuf>) -> anyhow::Result<()> {
    let layouts = Arc::new(Layouts::new(folders));
    let listener = TcpListener::bind(ADDRESS)?;
    for stream in listener.incoming() {
        let stream = stream?;
        let layouts = Arc::clone(&layouts);
        std::thread::spawn(move || {
            if let Err(error) = serve(stream, &layouts) {
                eprintln!("registry: {error:#}");
            }
        });
    }
    Ok(())
}

/// Answers the requests of one connection until the client closes it.
fn serve(stream: TcpStream, layouts: &Layouts) -> anyhow::Result<()> {
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = Request::read(&mut reader)? {
        let response = respond(&request, layouts);
        eprintln!(
            "{} {} -> {}",
            request.method, request.target, response.status
        );
        response.write(&request, &mut writer)?;
        writer.flush()?;
    }
    Ok(())
}

/// The distribution API's read half: `/v2/`, `/v2/NAME/manifests/REFERENCE`, `/v2/NAME/blobs/DIGEST`.
fn respond(request: &Request, layouts: &Layouts) -> Response {
    let Some(path) = request.path().strip_prefix("/v2/") else {
        return Response::not_found();
    };
    if path.is_empty() {
        return Response::text("{}");
    }
    if let Some((name, reference)) = path.split_once("/manifests/") {
        let host = request.query("ns");
        return match layouts.manifest(host.as_deref(), name, reference) {
            Some(found) => Response::file(&found.path, &found.media_type, Some(&found.digest)),
            None => Response::not_found(),
        };
    }
    match path.split_once("/blobs/") {
        Some((_, digest)) => match layouts.blob(digest) {
            Some(file) => Response::file(&file, "application/octet-stream", Some(digest)),
            None => Response::not_found(),
        },
        None => Response::not_found(),
    }
}

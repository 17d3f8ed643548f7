//! As much of HTTP/1.1 as containerd's image client uses to pull: GET and HEAD with kept-alive connections.

use std::fs::File;
use std::io::{self, BufRead, Write};
use std::path::Path;

/// One request line; header fields are read and not needed.
#[derive(Debug)]
pub struct Request {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path and query as sent.
    pub target: String,
}

impl Request {
    /// Reads a request head; `None` when the client closed the connection before one.
    ///
    /// # Errors
    /// The connection fails, or the first line is not a request line.
    pub fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let mut words = line.split_whitespace();
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not a request line",
            ));
        };
        let request = Self {
            method: method.to_owned(),
            target: target.to_owned(),
        };
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 || line.trim_end().is_empty() {
                return Ok(Some(request));
            }
        }
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target
            .split_once('?')
            .map_or(self.target.as_str(), |(path, _)| path)
    }

    /// The value of a query parameter: a host's name or address, and its port.
    pub fn query(&self, key: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let value = query.split('&').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name == key).then_some(value)
        })?;
        Some(unescaped(value))
    }
}

/// Text without the escapes of what stands in a host and has a meaning in a URL (RFC 3986, section 2.1).
fn unescaped(text: &str) -> String {
    [("%3A", ":"), ("%5B", "["), ("%5D", "]")]
        .iter()
        .fold(text.to_owned(), |text, (escape, character)| {
            text.replace(escape, character)
        })
}

/// What a response carries after its head.
#[derive(Debug)]
enum Body {
    Text(&'static str),
    File(File),
}

/// One answer.
#[derive(Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    media_type: String,
    digest: Option<String>,
    len: u64,
    body: Body,
}

impl Response {
    /// 200 with a short text.
    pub fn text(text: &'static str) -> Self {
        Self {
            status: 200,
            media_type: "application/json".into(),
            digest: None,
            len: text.len() as u64,
            body: Body::Text(text),
        }
    }

    /// 404 with the error body that the distribution specification asks for.
    pub fn not_found() -> Self {
        Self {
            status: 404,
            ..Self::text(r#"{"errors":[{"code":"NAME_UNKNOWN"}]}"#)
        }
    }

    /// 200 with a file's content, or 404 when it cannot be opened.
    pub fn file(path: &Path, media_type: &str, digest: Option<&str>) -> Self {
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match opened {
            Ok((len, file)) => Self {
                status: 200,
                media_type: media_type.to_owned(),
                digest: digest.map(str::to_owned),
                len,
                body: Body::File(file),
            },
            Err(_) => Self::not_found(),
        }
    }

    /// Writes head and, unless the request was a HEAD, body.
    ///
    /// # Errors
    /// The connection or the file fails.
    pub fn write(mut self, request: &Request, writer: &mut impl Write) -> io::Result<()> {
        let reason = if self.status == 200 {
            "OK"
        } else {
            "Not Found"
        };
        write!(
            writer,
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
            self.status, self.media_type, self.len
        )?;
        if let Some(digest) = &self.digest {
            write!(writer, "Docker-Content-Digest: {digest}\r\n")?;
        }
        writer.write_all(b"\r\n")?;
        if request.method == "HEAD" {
            return Ok(());
        }
        match &mut self.body {
            Body::Text(text) => writer.write_all(text.as_bytes()),
            Body::File(file) => io::copy(file, writer).map(drop),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(head: &str) -> Request {
        Request::read(&mut head.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_request_head_is_split_into_path_and_query() {
        let request =
            request("GET /v2/a/b/manifests/1?ns=localhost%3A5000&x=y HTTP/1.1\r\nHost: h\r\n\r\n");
        assert_eq!(request.path(), "/v2/a/b/manifests/1");
        assert_eq!(request.query("ns").as_deref(), Some("localhost:5000"));
        assert_eq!(request.query("none"), None);
    }

    #[test]
    fn an_address_of_the_sixth_version_is_read_from_a_query() {
        let request = request("GET /v2/a/manifests/1?ns=%5Bfd00%3A%3A1%5D%3A8443 HTTP/1.1\r\n");
        assert_eq!(request.query("ns").as_deref(), Some("[fd00::1]:8443"));
    }

    #[test]
    fn a_closed_connection_ends_without_an_error() {
        assert!(Request::read(&mut &b""[..]).unwrap().is_none());
    }

    #[test]
    fn a_head_request_is_answered_with_the_length_and_no_body() {
        let mut out = Vec::new();
        Response::text("{}")
            .write(&request("HEAD /v2/ HTTP/1.1\r\n\r\n"), &mut out)
            .unwrap();
        let out = String::from_utf8(out).unwrap();
        assert!(out.contains("Content-Length: 2\r\n"));
        assert!(out.ends_with("\r\n\r\n"));
    }
}

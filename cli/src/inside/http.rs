//! Just enough of HTTP/1.1 to be asked for metrics. One client at a time, each for a bounded time
//! and a bounded number of bytes; nothing that it sends is used but method and path.

use anyhow::Context;
use ravelin::machine::interrupted;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How long a client may take for its request, and again for the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest request in bytes, and most header lines.
const LONGEST: usize = 8192;
const MOST_HEADERS: usize = 64;
/// How often a signal is looked for while nobody asks.
const PERIOD: Duration = Duration::from_millis(100);

/// Answers with `page` until a signal ends it.
///
/// # Errors
/// The address cannot be listened on. What goes wrong with one client ends nothing.
pub fn serve(address: SocketAddr, page: impl Fn() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let stop = interrupted()?;
    let listener =
        TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    listener.set_nonblocking(true)?;
    anstream::eprintln!("ravelin: metrics at http://{}/metrics", listener.local_addr()?);
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((client, _)) => {
                if let Err(error) = answer(client, &page) {
                    anstream::eprintln!("ravelin: a client was not answered: {error}");
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(PERIOD),
            Err(error) => {
                // Out of file descriptors, say: not for ever.
                anstream::eprintln!("ravelin: {error}");
                std::thread::sleep(PERIOD);
            }
        }
    }
    Ok(())
}

fn answer(
    mut client: TcpStream,
    page: &impl Fn() -> anyhow::Result<String>,
) -> std::io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    let (status, body) = match request(&mut client)? {
        Request::Metrics => match page() {
            Ok(page) => ("200 OK", page),
            Err(error) => ("500 Internal Server Error", format!("{error:#}\n")),
        },
        Request::Elsewhere => ("404 Not Found", "the metrics are at /metrics\n".to_owned()),
        Request::OtherMethod => ("405 Method Not Allowed\r\nAllow: GET", String::new()),
        Request::Bad => ("400 Bad Request", String::new()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    client.write_all(head.as_bytes())?;
    client.write_all(body.as_bytes())
}

enum Request {
    Metrics,
    Elsewhere,
    OtherMethod,
    Bad,
}

/// Reads a request up to the end of its headers.
fn request(client: &mut TcpStream) -> std::io::Result<Request> {
    let end = Instant::now() + PATIENCE;
    let mut bytes = [0; LONGEST];
    let mut length = 0;
    while let Some(room) = bytes.get_mut(length..).filter(|room| !room.is_empty()) {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        client.set_read_timeout(Some(left))?;
        match client.read(room)? {
            0 => return Ok(Request::Bad),
            count => length += count,
        }
        if let Some(request) = judge(bytes.get(..length).unwrap_or_default()) {
            return Ok(request);
        }
    }
    Ok(Request::Bad)
}

/// What is asked for; `None` if the request is not complete.
fn judge(bytes: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => None,
        Err(_) => Some(Request::Bad),
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.map(|path| path.split('?').next().unwrap_or(path));
            Some(match (request.method, path) {
                (Some("GET"), Some("/metrics")) => Request::Metrics,
                (Some("GET"), _) => Request::Elsewhere,
                _ => Request::OtherMethod,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client that sends `request` is answered.
    fn ask(request: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        client.write_all(request).unwrap();
        // A request without an end ends with the stream.
        client.shutdown(std::net::Shutdown::Write).unwrap();
        answer(server, &|| Ok("ravelin_locked 2\n".to_owned())).unwrap();
        let mut text = String::new();
        // What was not read of a bad request may end the connection early.
        let _ = client.read_to_string(&mut text);
        text
    }

    #[test]
    fn metrics_are_given_and_nothing_else() {
        let good = ask(b"GET /metrics?name=x HTTP/1.1\r\nHost: here\r\n\r\n");
        assert!(good.starts_with("HTTP/1.1 200 OK\r\n"), "{good}");
        assert!(good.contains("Content-Length: 17\r\n"), "{good}");
        assert!(good.ends_with("\r\n\r\nravelin_locked 2\n"), "{good}");
        for (request, status) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], "404"),
            (b"POST /metrics HTTP/1.1\r\n\r\n", "405"),
            (b"GET /metrics HTTP/1.1\r\nHost", "400"),
            (b"\x16\x03\x01\x02\x00\x01", "400"),
            (&[b'A'; LONGEST], "400"),
            (b"", "400"),
        ] {
            let answer = ask(request);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        }
    }
}

//! A small SOCKS 5 proxy on loopback (RFC 1928, RFC 1929), which leads wherever it is asked to one port of this machine.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// A proxy that runs as long as the tests do.
pub(crate) struct SocksProxy {
    pub(crate) port: u16,
    /// Where it was asked to lead, `host:port`.
    seen: Arc<Mutex<Vec<String>>>,
}

impl SocksProxy {
    /// A proxy to the local port `leads_to`, for those who know `login` if there is one.
    pub(crate) fn start(leads_to: u16, login: Option<(&'static str, &'static str)>) -> SocksProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let targets = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let targets = Arc::clone(&targets);
                // A client that has enough goes without a word.
                thread::spawn(move || drop(serve(stream, leads_to, login, &targets)));
            }
        });
        SocksProxy { port, seen }
    }

    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn serve(
    mut client: TcpStream,
    leads_to: u16,
    login: Option<(&str, &str)>,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let [5, count] = bytes(&mut client)? else { return Ok(()) };
    let offered = some_bytes(&mut client, count)?;
    let method = if login.is_some() { 2 } else { 0 };
    if !offered.contains(&method) {
        return client.write_all(&[5, 0xff]);
    }
    client.write_all(&[5, method])?;
    if let Some((user, password)) = login {
        let [1, length] = bytes(&mut client)? else { return Ok(()) };
        let given_user = some_bytes(&mut client, length)?;
        let [length] = bytes(&mut client)?;
        let given_password = some_bytes(&mut client, length)?;
        let is_right = (given_user, given_password) == (user.into(), password.into());
        client.write_all(&[1, u8::from(!is_right)])?;
        if !is_right {
            return Ok(());
        }
    }
    let [5, 1, 0, kind] = bytes(&mut client)? else { return Ok(()) };
    let host = match kind {
        1 => Ipv4Addr::from(bytes::<4>(&mut client)?).to_string(),
        3 => {
            let [length] = bytes(&mut client)?;
            String::from_utf8(some_bytes(&mut client, length)?).unwrap()
        }
        _ => return client.write_all(&[5, 8, 0, 1, 0, 0, 0, 0, 0, 0]),
    };
    let port = u16::from_be_bytes(bytes(&mut client)?);
    seen.lock().unwrap().push(format!("{host}:{port}"));
    let mut server = TcpStream::connect(("127.0.0.1", leads_to))?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let forth = thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    let _ = forth.join();
    Ok(())
}

fn bytes<const N: usize>(stream: &mut TcpStream) -> std::io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn some_bytes(stream: &mut TcpStream, count: u8) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(count)];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

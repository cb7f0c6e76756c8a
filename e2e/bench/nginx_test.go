package bench

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"token.place/e2e/internal/debian"
	"token.place/e2e/internal/testnet"
	"token.place/identity"
)

// nginx as Debian ships it, told to do what a relay does: TLS on both sides,
// connections kept, nothing written down.
const nginxConf = `
daemon off;
user root;
worker_processes auto;
pid nginx.pid;
error_log stderr crit;
events { worker_connections 8192; }
http {
	access_log off;
	client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
	keepalive_requests 100000000;
	upstream target { server %[2]s; keepalive 512; keepalive_requests 100000000; }
	server {
		listen %[1]s ssl;
		ssl_certificate cert.pem; ssl_certificate_key key.pem; ssl_protocols TLSv1.3;
		proxy_http_version 1.1; proxy_set_header Connection "";
		proxy_ssl_protocols TLSv1.3; proxy_ssl_session_reuse on;
		location /x { proxy_pass https://target; }
		location /s { proxy_pass https://target; proxy_buffering off; }
	}
}
`

// startNginx starts nginx in front of upstream and returns its address and the
// id of its first process.
func startNginx(b *testing.B, upstream string) (addr string, pid int) {
	b.Helper()
	suite, err := debian.Codename()
	if err != nil {
		b.Fatal(err)
	}
	packages := testnet.Cache(b, "nginx")
	if err := debian.Fetch(b.Context(), suite, packages, "nginx"); err != nil {
		b.Fatal(err)
	}
	path, args, err := debian.Command(packages, "usr/sbin/nginx")
	if err != nil {
		b.Fatal(err)
	}
	// nginx takes no port 0. Between this and its own listening somebody could
	// take the port: then it says so and the benchmark fails.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr = ln.Addr().String()
	ln.Close()
	dir := b.TempDir()
	writePair(b, dir)
	write(b, filepath.Join(dir, "nginx.conf"), []byte(fmt.Sprintf(nginxConf, addr, upstream)))
	p := testnet.Start(b, testnet.Command{Name: "nginx", Path: path, Args: append(args, "-p", dir, "-c", "nginx.conf"), Dir: dir})
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			break
		}
		if time.Since(began) > testnet.Patience {
			b.Fatalf("nginx does not listen: %s", p.Stderr())
		}
	}
	// Its workers outlive a master that is killed.
	b.Cleanup(func() {
		syscall.Kill(p.PID(), syscall.SIGTERM)
		p.Wait()
	})
	return addr, p.PID()
}

// family is a process and its children.
func family(b *testing.B, pid int) []int {
	b.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		b.Fatal(err)
	}
	pids := []int{pid}
	for _, f := range strings.Fields(string(raw)) {
		child, err := strconv.Atoi(f)
		if err != nil {
			b.Fatal(err)
		}
		pids = append(pids, child)
	}
	return pids
}

// writePair writes a certificate of the kind that the relay has.
func writePair(b *testing.B, dir string) {
	b.Helper()
	cred, err := identity.NewCredential()
	if err != nil {
		b.Fatal(err)
	}
	cert, err := cred.Certificate()
	if err != nil {
		b.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		b.Fatal(err)
	}
	write(b, filepath.Join(dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
	write(b, filepath.Join(dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
}

func write(b *testing.B, path string, data []byte) {
	b.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.Fatal(err)
	}
}

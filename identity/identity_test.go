package identity_test

import (
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"
	"token.place/identity"
	"token.place/internal/memnet"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func descriptor() identity.Descriptor {
	return identity.Descriptor{
		Capacity:  4,
		Keys:      []byte{0, 3, 1, 2, 3},
		Models:    []identity.Model{{ID: "pocket", ContextLength: 1024}, {ID: "a/b:c <&> ü"}},
		NotBefore: now, NotAfter: now.Add(time.Hour),
	}
}

func credential(t *testing.T) *identity.Credential {
	t.Helper()
	c, err := identity.NewCredential()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestIDOfIsStable(t *testing.T) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	if got := identity.IDOf(key); got != "copdsqhgjnkjc4rardm2bv2bmk" {
		t.Errorf("ID of the all-zero seed = %s", got)
	}
	for _, bad := range []string{"", "short", strings.Repeat("a", 27), strings.Repeat("A", 26), strings.Repeat("1", 26), strings.Repeat("é", 13)} {
		if _, err := identity.ParseID(bad); err == nil {
			t.Errorf("ParseID(%q) passed", bad)
		}
	}
}

func TestVerify(t *testing.T) {
	c := credential(t)
	b, err := c.Sign(descriptor())
	if err != nil {
		t.Fatal(err)
	}
	id, d, err := identity.Verify(b, identity.Trust{Nodes: []identity.ID{c.ID()}}, now)
	if err != nil || id != c.ID() {
		t.Fatalf("Verify = %s, %v", id, err)
	}
	if len(d.Models) != 2 || d.Models[1].ID != "a/b:c <&> ü" || d.Capacity != 4 || !d.NotAfter.Equal(now.Add(time.Hour)) {
		t.Errorf("descriptor came back as %+v", d)
	}
	if _, _, err := identity.Verify(b, identity.Trust{}, now); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("a node that nobody pinned: %v", err)
	}
	for _, at := range []time.Time{now.Add(-6 * time.Minute), now.Add(time.Hour), now.Add(48 * time.Hour)} {
		if _, _, err := b.Open(at); !errors.Is(err, identity.ErrExpired) {
			t.Errorf("at %v: %v", at, err)
		}
	}
}

// A relay hands out bundles, so anything it could put together from the parts
// it sees must be refused.
func TestVerifyRefusesForgeries(t *testing.T) {
	victim, relay := credential(t), credential(t)
	good, _ := victim.Sign(descriptor())
	own, _ := relay.Sign(descriptor())
	trust := identity.Trust{Nodes: []identity.ID{victim.ID()}}
	renamed := strings.Replace(own.Key, string(relay.ID()), string(victim.ID()), 1)
	skew := func(old, new string) identity.Bundle {
		return identity.Bundle{Key: good.Key, Descriptor: strings.Replace(good.Descriptor, old, new, 1)}
	}
	cases := map[string]identity.Bundle{
		"empty":                           {},
		"the relay's own":                 own,
		"the relay's descriptor":          {Key: good.Key, Descriptor: own.Descriptor},
		"the relay's key":                 {Key: own.Key, Descriptor: good.Descriptor},
		"the relay's key, victim's name":  {Key: renamed, Descriptor: own.Descriptor},
		"one model changed":               skew("pocket", "pockeT"),
		"one key byte changed":            skew("AAMBAgM=", "AAMBAgQ="),
		"text after the signature":        {Key: good.Key, Descriptor: good.Descriptor + "x"},
		"cut short":                       {Key: good.Key, Descriptor: good.Descriptor[:len(good.Descriptor)-9]},
		"no signature":                    {Key: good.Key, Descriptor: good.Descriptor[:strings.Index(good.Descriptor, "\n\n")+1]},
		"too long":                        {Key: good.Key, Descriptor: strings.Repeat("x", 1<<20)},
		"key with a line break":           {Key: good.Key + "\n", Descriptor: good.Descriptor},
		"plus signs where a name belongs": {Key: "++++++++++", Descriptor: good.Descriptor},
	}
	for name, b := range cases {
		if _, _, err := identity.Verify(b, trust, now); !errors.Is(err, identity.ErrForged) && !errors.Is(err, identity.ErrUntrusted) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What a node signs with its own key is still held to the one canonical form.
func TestOpenIsStrict(t *testing.T) {
	c := credential(t)
	good, _ := c.Sign(descriptor())
	text := good.Descriptor[:strings.Index(good.Descriptor, "\n\n")+1]
	for name, change := range map[string][2]string{
		"unknown field":   {`{"capacity"`, `{"admin":true,"capacity"`},
		"repeated field":  {`{"capacity":4`, `{"capacity":9,"capacity":4`},
		"white space":     {`{"capacity":4`, `{ "capacity":4`},
		"escaped letter":  {`pocket`, `\u0070ocket`},
		"float":           {`"capacity":4`, `"capacity":4.0`},
		"other case":      {`"capacity"`, `"Capacity"`},
		"trailing JSON":   {"}\n", "}{}\n"},
		"next version":    {"/v1\n", "/v2\n"},
		"another node":    {string(c.ID()), string(credential(t).ID())},
		"no capacity":     {`"capacity":4`, `"capacity":0`},
		"control in name": {`pocket`, `po\u0007ket`},
		"model twice":     {`"a/b:c <&> ü"`, `"pocket"`},
		"two days":        {`"not_after":"2026-11-22`, `"not_after":"2026-11-24`},
		"torn keys":       {`AAMBAgM=`, `AAMBAgMA`},
		"another zone":    {`T12:00:00Z`, `T13:00:00+01:00`},
	} {
		changed := strings.Replace(text, change[0], change[1], 1)
		if changed == text {
			t.Fatalf("%s: changed nothing", name)
		}
		b := identity.Bundle{Key: good.Key, Descriptor: identity.SignText(c, changed)}
		if _, _, err := b.Open(now); !errors.Is(err, identity.ErrForged) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, _, err := (identity.Bundle{Key: good.Key, Descriptor: identity.SignText(c, text)}).Open(now); err != nil {
		t.Errorf("unchanged text, same hook: %v", err)
	}
}

func TestSignRefusesWhatOpenWould(t *testing.T) {
	c := credential(t)
	for name, change := range map[string]func(*identity.Descriptor){
		"capacity":    func(d *identity.Descriptor) { d.Capacity = 1001 },
		"no keys":     func(d *identity.Descriptor) { d.Keys = nil },
		"long life":   func(d *identity.Descriptor) { d.NotAfter = now.Add(3 * time.Hour) },
		"no life":     func(d *identity.Descriptor) { d.NotAfter = now },
		"not UTF-8":   func(d *identity.Descriptor) { d.Models[0].ID = "\xff" },
		"10 MB name":  func(d *identity.Descriptor) { d.Models[0].ID = strings.Repeat("m", 10<<20) },
		"many models": func(d *identity.Descriptor) { d.Models = make([]identity.Model, 200) },
	} {
		d := descriptor()
		change(&d)
		if _, err := c.Sign(d); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
}

func TestLoadCredential(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node", "identity.pem")
	c, err := identity.LoadCredential(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, _ := os.Stat(path); info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	again, err := identity.LoadCredential(path)
	if err != nil || again.ID() != c.ID() {
		t.Errorf("loaded %v, %v; want %s", again, err, c.ID())
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	os.Chmod(path, 0o644)
	if _, err := identity.LoadCredential(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("readable by others: %v", err)
	}
	os.Chmod(path, 0o600)
	for _, bad := range []string{"", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		os.WriteFile(path, []byte(bad), 0o600)
		if _, err := identity.LoadCredential(path); err == nil || !strings.Contains(err.Error(), "identity file") {
			t.Errorf("file %q: %v", bad, err)
		}
	}
}

// None of these is a reason to make an identity, and none may wait or write.
func TestLoadCredentialWantsAFile(t *testing.T) {
	dir := t.TempDir()
	link, target := filepath.Join(dir, "link.pem"), filepath.Join(dir, "target.pem")
	if err := os.Symlink(target, link); err != nil {
		t.Skip("no symbolic links here")
	}
	if _, err := identity.LoadCredential(link); err == nil || !strings.Contains(err.Error(), "not there") {
		t.Errorf("a link to nothing: %v", err)
	}
	if _, err := identity.LoadCredential(dir); err == nil || !strings.Contains(err.Error(), "not a file with a key") {
		t.Errorf("a folder: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
	c, err := identity.LoadCredential(target)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := identity.LoadCredential(link); err != nil || again.ID() != c.ID() {
		t.Errorf("a link to an identity: %v", err)
	}
	os.WriteFile(target, make([]byte, 1<<20), 0o600)
	if _, err := identity.LoadCredential(target); err == nil {
		t.Error("a file of a megabyte passed")
	}
}

func TestRelayPin(t *testing.T) {
	relay, node := credential(t), credential(t)
	cert, err := relay.Certificate()
	if err != nil {
		t.Fatal(err)
	}
	clientCert, _ := node.Certificate()
	dial := func(r identity.Relay) (serverSaw identity.ID, err error) {
		a, b := memnet.Pipe()
		server := tls.Server(b, &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ClientAuth: tls.RequestClientCert})
		cfg := r.TLS("x")
		cfg.Certificates = []tls.Certificate{clientCert}
		client := tls.Client(a, cfg)
		done := make(chan error, 1)
		go func() {
			err := server.Handshake()
			if err == nil {
				serverSaw, err = identity.PeerID(server.ConnectionState())
			}
			b.Close()
			done <- err
		}()
		err = client.Handshake()
		a.Close()
		if e := <-done; err == nil {
			err = e
		}
		return serverSaw, err
	}
	pinned, err := identity.ParseRelay("https://relay.example:8443/#" + string(relay.ID()))
	if err != nil {
		t.Fatal(err)
	}
	if saw, err := dial(pinned); err != nil || saw != node.ID() {
		t.Errorf("right pin: relay saw %s, %v", saw, err)
	}
	wrong := pinned
	wrong.ID = node.ID()
	if _, err := dial(wrong); !errors.Is(err, identity.ErrPeer) {
		t.Errorf("wrong pin: %v", err)
	}
	if _, err := dial(identity.Relay{URL: pinned.URL}); err == nil {
		t.Error("a self-signed relay passed without a pin")
	}
}

func TestParseRelay(t *testing.T) {
	id := string(credential(t).ID())
	for in, want := range map[string]string{
		"https://r.example":              "https://r.example",
		"https://r.example/":             "https://r.example",
		"https://r.example:8443/#" + id:  "https://r.example:8443/#" + id,
		"https://[::1]:8443#" + id:       "https://[::1]:8443/#" + id,
		"http://r.example":               "",
		"r.example:443":                  "",
		"https://":                       "",
		"https://u:p@r.example":          "",
		"https://r.example/path":         "",
		"https://r.example/?q":           "",
		"https://r.example/#nope":        "",
		"https://r.example/#" + id + "a": "",
		"":                               "",
	} {
		r, err := identity.ParseRelay(in)
		if (err == nil) != (want != "") || err == nil && r.String() != want {
			t.Errorf("ParseRelay(%q) = %v, %v; want %q", in, r, err, want)
		}
	}
}

func FuzzBundle(f *testing.F) {
	c, _ := identity.NewCredential()
	good, _ := c.Sign(descriptor())
	f.Add(good.Key, good.Descriptor)
	f.Add("a+12345678+AQ", "x\n\n— a b\n")
	f.Fuzz(func(t *testing.T, key, desc string) {
		b := identity.Bundle{Key: key, Descriptor: desc}
		id, d, err := b.Open(now)
		if err != nil {
			return
		}
		if _, err := identity.ParseID(string(id)); err != nil {
			t.Errorf("opened as %q", id)
		}
		if _, err := json.Marshal(d); err != nil {
			t.Error(err)
		}
		if _, err := note.NewVerifier(key); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	c, _ := identity.NewCredential()
	good, _ := c.Sign(descriptor())
	trust := identity.Trust{Nodes: []identity.ID{c.ID()}}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := identity.Verify(good, trust, now); err != nil {
			b.Fatal(err)
		}
	}
}

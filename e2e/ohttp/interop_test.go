// Package ohttp_test exchanges sealed requests with an independent implementation
// of Oblivious HTTP, github.com/openpcc/ohttp, in both roles.
package ohttp_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cloudflare/circl/hpke"
	foreign "github.com/openpcc/ohttp"
	foreignenc "github.com/openpcc/ohttp/encoding/bhttp"

	"token.place/internal/memnet"
	"token.place/ohttp"
)

func TestMain(m *testing.M) {
	// The other implementation logs the URL inside each request.
	slog.SetDefault(slog.New(slog.DiscardHandler))
	os.Exit(m.Run())
}

var kems = []struct {
	name  string
	ours  ohttp.KEM
	their hpke.KEM
}{
	{"X-Wing", ohttp.XWing, hpke.KEM_XWING},
	{"X25519", ohttp.X25519, hpke.KEM_X25519_HKDF_SHA256},
}

var aeads = map[string]hpke.AEAD{
	"AES-128-GCM": hpke.AEAD_AES128GCM, "AES-256-GCM": hpke.AEAD_AES256GCM, "ChaCha20-Poly1305": hpke.AEAD_ChaCha20Poly1305,
}

// serve runs h as an HTTP server in memory and returns a way to it at
// http://gateway:80/.
func serve(t *testing.T, h http.Handler) *http.Transport {
	t.Helper()
	network := memnet.New()
	l, err := network.Listen("gateway:80")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	base := &http.Transport{DialContext: network.Dial, DisableCompression: true}
	t.Cleanup(func() {
		base.CloseIdleConnections()
		server.Close()
		<-done
	})
	return base
}

const (
	gatewayURL = "http://gateway:80/"
	targetURL  = "https://ohttp.invalid/v1/x?q=1"
)

// target is the inner server of both roles: it tells what it got, in two pieces, or
// with X-Whole in one of known length, which their gateway does not answer in chunks.
func target(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, "cannot read the body", http.StatusBadRequest)
		return
	}
	w.Header().Set("X-Seen", r.Header.Get("X-Sent"))
	first := fmt.Sprintf("%s %s %s %d\n", r.Method, r.Host, r.URL.RequestURI(), len(body))
	if r.Header.Get("X-Whole") != "" {
		w.Header().Set("Content-Length", strconv.Itoa(len(first)+len(body)))
	}
	io.WriteString(w, first)
	if r.Header.Get("X-Whole") == "" {
		w.(http.Flusher).Flush()
	}
	w.Write(bytes.ToUpper(body))
}

// ask sends body through rt and checks what target makes of it.
func ask(t *testing.T, rt http.RoundTripper, body string, known, whole bool) {
	t.Helper()
	var content io.Reader = strings.NewReader(body)
	if !known {
		content = io.MultiReader(content)
	}
	req, err := http.NewRequestWithContext(t.Context(), "POST", targetURL, content)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Sent", "some value")
	if whole {
		req.Header.Set("X-Whole", "1")
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("POST ohttp.invalid /v1/x?q=1 %d\n%s", len(body), strings.ToUpper(body))
	if resp.StatusCode != 200 || string(got) != want || resp.Header.Get("X-Seen") != "some value" {
		t.Errorf("%d %v %.200q, want %.200q", resp.StatusCode, resp.Header, got, want)
	}
}

var bodies = map[string]string{
	"small": "prompt",
	"large": strings.Repeat("a large prompt. ", 10_000),
}

// Their client, our Handler.
func TestForeignClient(t *testing.T) {
	for _, kem := range kems {
		for aead := range aeads {
			for size, body := range bodies {
				for _, chunked := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s/%s/%s/chunked=%v", kem.name, aead, size, chunked), func(t *testing.T) {
						keys, err := ohttp.NewKeys(ohttp.KeysConfig{})
						if err != nil {
							t.Fatal(err)
						}
						base := serve(t, &ohttp.Handler{Keys: keys, Next: http.HandlerFunc(target)})
						rt, err := foreign.NewTransport(foreignConfig(t, keys.Public(), kem.their, aeads[aead]), gatewayURL,
							foreign.WithHTTPClient(&http.Client{Transport: base}))
						if err != nil {
							t.Fatal(err)
						}
						// Theirs is chunked when the length of the body is unknown.
						ask(t, rt, body, !chunked, false)
						ask(t, rt, body, !chunked, true)
					})
				}
			}
		}
	}
}

// foreignConfig parses our published keys with their code and takes one.
func foreignConfig(t *testing.T, public []byte, kem hpke.KEM, aead hpke.AEAD) foreign.KeyConfig {
	t.Helper()
	var configs foreign.KeyConfigs
	if err := configs.UnmarshalBinary(public); err != nil {
		t.Fatal(err)
	}
	for _, c := range configs {
		if c.KemID == kem {
			c.SymmetricAlgorithms = []foreign.SymmetricAlgorithm{{KDFID: hpke.KDF_HKDF_SHA256, AEADID: aead}}
			return c
		}
	}
	t.Fatal("their code does not find the key")
	panic("unreachable")
}

// Our Transport, their gateway.
func TestForeignGateway(t *testing.T) {
	for _, kem := range kems {
		for aead := range aeads {
			for size, body := range bodies {
				for _, chunked := range []bool{true, false} {
					t.Run(fmt.Sprintf("%s/%s/%s/chunked=%v", kem.name, aead, size, chunked), func(t *testing.T) {
						public, gateway := newForeignGateway(t, kem.their, aeads[aead])
						key, err := ohttp.ParsePublicKey(public, kem.ours)
						if err != nil {
							t.Fatal(err)
						}
						base := serve(t, foreign.Middleware(gateway, http.HandlerFunc(target)))
						tr := &ohttp.Transport{URL: gatewayURL, Key: key, Base: base, Whole: !chunked}
						for _, known := range []bool{true, false} {
							ask(t, tr, body, known, !chunked)
						}
					})
				}
			}
		}
	}
}

// newForeignGateway makes a key pair with their code and a gateway for it.
func newForeignGateway(t *testing.T, kem hpke.KEM, aead hpke.AEAD) ([]byte, *foreign.Gateway) {
	t.Helper()
	public, private, err := kem.Scheme().GenerateKeyPair()
	if err != nil {
		t.Fatal(err)
	}
	config := foreign.KeyConfig{KeyID: 3, KemID: kem, PublicKey: public,
		SymmetricAlgorithms: []foreign.SymmetricAlgorithm{{KDFID: hpke.KDF_HKDF_SHA256, AEADID: aead}}}
	list, err := foreign.KeyConfigs{config}.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	// Their gateway takes requests in chunks of 4096 octets unless told otherwise.
	decoder, err := foreignenc.NewRequestDecoder(foreignenc.MaxRequestChunkLen(16384))
	if err != nil {
		t.Fatal(err)
	}
	gateway, err := foreign.NewGateway(foreign.KeyPair{SecretKey: private, KeyConfig: config}, foreign.WithRequestDecoder(decoder))
	if err != nil {
		t.Fatal(err)
	}
	return list, gateway
}

// A chunk arrives when it is flushed, through their gateway too.
func TestForeignGatewayStreams(t *testing.T) {
	public, gateway := newForeignGateway(t, hpke.KEM_XWING, hpke.AEAD_AES256GCM)
	key, err := ohttp.ParsePublicKey(public, ohttp.XWing)
	if err != nil {
		t.Fatal(err)
	}
	more := make(chan string)
	base := serve(t, foreign.Middleware(gateway, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		for s := range more {
			io.WriteString(w, s)
		}
	})))
	req, err := http.NewRequestWithContext(t.Context(), "POST", targetURL, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&ohttp.Transport{URL: gatewayURL, Key: key, Base: base}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, s := range []string{"one", "two"} {
		more <- s
		got := make([]byte, 3)
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != s {
			t.Fatalf("%q, %v", got, err)
		}
	}
	close(more)
	if n, err := resp.Body.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("at the end %d, %v", n, err)
	}
}

// Their client must not take an answer that broke off for a whole one either, so
// that what we do when an engine dies works for any client.
func TestForeignClientSeesAbort(t *testing.T) {
	keys, err := ohttp.NewKeys(ohttp.KeysConfig{})
	if err != nil {
		t.Fatal(err)
	}
	base := serve(t, &ohttp.Handler{Keys: keys, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half an ans")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})})
	rt, err := foreign.NewTransport(foreignConfig(t, keys.Public(), hpke.KEM_XWING, hpke.AEAD_AES256GCM), gatewayURL,
		foreign.WithHTTPClient(&http.Client{Transport: base}))
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), "POST", targetURL, io.MultiReader(strings.NewReader("x")))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err == nil {
		var got []byte
		got, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if err == nil {
			t.Fatalf("taken for whole: %q", got)
		}
	}
}

// Their decapsulation of a request made by our Transport must fail if anything of it
// is changed; ours of theirs is tested in the package itself.
func TestForeignGatewayRefusesDamage(t *testing.T) {
	public, gateway := newForeignGateway(t, hpke.KEM_X25519_HKDF_SHA256, hpke.AEAD_AES128GCM)
	key, err := ohttp.ParsePublicKey(public, ohttp.X25519)
	if err != nil {
		t.Fatal(err)
	}
	base := serve(t, foreign.Middleware(gateway, http.HandlerFunc(target)))
	tr := &ohttp.Transport{URL: gatewayURL, Key: key, Base: roundTripFunc(func(r *http.Request) (*http.Response, error) {
		sealed, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return nil, err
		}
		sealed[len(sealed)/2] ^= 1
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(sealed))
		return base.RoundTrip(r)
	})}
	req, err := http.NewRequestWithContext(t.Context(), "POST", targetURL, strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	var status *ohttp.StatusError
	if err == nil {
		resp.Body.Close()
		t.Fatalf("answered with %d", resp.StatusCode)
	} else if !errors.As(err, &status) || status.Status/100 != 4 {
		t.Errorf("%v", err)
	}
}

type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

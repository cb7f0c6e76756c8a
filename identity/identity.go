// Package identity answers who a node or a relay is, and whether to believe it.
//
// An identity is an Ed25519 key. Its [ID] is derived from the key, so whoever
// knows the ID can recognise the key, and nobody else can stand in for it. A
// node signs a [Descriptor] of what it offers for the next hour, above all the
// keys that clients seal to; descriptor and key together are a [Bundle], which
// any relay may hand out, because [Verify] needs nothing but the bundle and
// what the client already trusts.
//
// Today a client trusts the IDs that it was given ([Trust].Nodes). Networks
// with an authority add a logged credential to the bundle and a policy to
// Trust; nothing else changes shape. See spec/identity.md.
package identity

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base32"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// ID names a node or a relay: the first 26 characters of the lower-case base32
// of the SHA-256 of its Ed25519 public key, that is 130 bits of it.
type ID string

const idLen = 26

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// IDOf returns the ID that belongs to key.
func IDOf(key ed25519.PublicKey) ID {
	sum := sha256.Sum256(key)
	return ID(idEncoding.EncodeToString(sum[:])[:idLen])
}

// ParseID checks that s has the form of an ID.
func ParseID(s string) (ID, error) {
	if len(s) != idLen {
		return "", fmt.Errorf("id %q has %d characters, want %d", clip(s), len(s), idLen)
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return !('a' <= r && r <= 'z' || '2' <= r && r <= '7') }); i >= 0 {
		return "", fmt.Errorf("id %q: character %d is not one of a-z, 2-7", s, i+1)
	}
	return ID(s), nil
}

// clip keeps a hostile string from filling an error.
func clip(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// ErrPeer means that the other end of a TLS connection proved another identity
// than the one that was asked for, or none.
var ErrPeer = errors.New("the peer is not who it should be")

// PeerID returns the identity that the other end of a TLS connection proved:
// its leaf certificate's key, whose possession the handshake showed.
func PeerID(cs tls.ConnectionState) (ID, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", fmt.Errorf("%w: it sent no certificate", ErrPeer)
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", fmt.Errorf("%w: its certificate has no Ed25519 key", ErrPeer)
	}
	return IDOf(key), nil
}

// Relay is where a relay listens and how to recognise it.
type Relay struct {
	URL *url.URL // https, host and optional port only
	ID  ID       // "" leaves recognition to the web's certificate authorities
}

// ParseRelay reads "https://host[:port][/#ID]".
func ParseRelay(s string) (Relay, error) {
	u, err := url.Parse(s)
	if err != nil {
		return Relay{}, fmt.Errorf("relay %q is not a URL", clip(s))
	}
	r := Relay{URL: &url.URL{Scheme: u.Scheme, Host: u.Host}}
	switch {
	case u.Scheme != "https":
		return Relay{}, fmt.Errorf("relay %q: the URL must start with https://", clip(s))
	case u.Hostname() == "":
		return Relay{}, fmt.Errorf("relay %q has no host", clip(s))
	case u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "":
		return Relay{}, fmt.Errorf("relay %q: want https://host:port/#ID and nothing else", clip(s))
	}
	if u.Fragment != "" {
		if r.ID, err = ParseID(u.Fragment); err != nil {
			return Relay{}, fmt.Errorf("relay %q: %w", clip(s), err)
		}
	}
	return r, nil
}

// String is the form that ParseRelay reads.
func (r Relay) String() string {
	if r.ID == "" {
		return r.URL.String()
	}
	return r.URL.String() + "/#" + string(r.ID)
}

// Addr is the relay's host and port, for a dialler.
func (r Relay) Addr() string {
	if r.URL.Port() == "" {
		return r.URL.Hostname() + ":443"
	}
	return r.URL.Host
}

// TLS returns a client-side configuration that accepts this relay only. protos
// are offered by ALPN.
func (r Relay) TLS(protos ...string) *tls.Config {
	cfg := &tls.Config{MinVersion: tls.VersionTLS13, ServerName: r.URL.Hostname(), NextProtos: protos,
		// Small first records help a web page to show early; what goes here is
		// one frame at a time, which they would cut into ten.
		DynamicRecordSizingDisabled: true}
	if r.ID == "" {
		return cfg
	}
	// The certificate is self-signed: its key is the identity, so what a
	// certificate authority would vouch for is checked against the ID instead.
	// VerifyConnection also runs when a session is resumed.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		id, err := PeerID(cs)
		if err == nil && id != r.ID {
			err = fmt.Errorf("%w: relay %s answered as %s", ErrPeer, r.ID, id)
		}
		return err
	}
	return cfg
}

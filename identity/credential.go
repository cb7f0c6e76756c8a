package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Credential is the secret half of an identity: what a node or a relay proves
// itself with. It is safe for concurrent use.
type Credential struct {
	key ed25519.PrivateKey
}

// NewCredential makes a fresh identity that lives in memory only.
func NewCredential() (*Credential, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return &Credential{key: key}, nil
}

const pemType = "PRIVATE KEY"

// LoadCredential reads the identity in the file at path, PEM of PKCS #8. If
// there is no such file it makes an identity and writes it there, mode 0600,
// with any folder that is missing. A file that others may read is refused.
func LoadCredential(path string) (*Credential, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return createCredential(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != pemType || len(rest) > 0 {
		return nil, fmt.Errorf("identity file %s is not one PEM block of type %q: restore it from a backup, or move it away to get a new identity", path, pemType)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("identity file %s: %w", path, err)
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("identity file %s holds a %T, want an Ed25519 key", path, k)
	}
	return &Credential{key: key}, nil
}

func createCredential(path string) (*Credential, error) {
	c, err := NewCredential()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, fmt.Errorf("encode identity: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("write identity: %w", err)
	}
	// Written whole under another name first: a full disk or a crash leaves no
	// half identity, and Link refuses to replace one that another process made.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".identity-*")
	if err != nil {
		return nil, fmt.Errorf("write identity: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(pem.EncodeToMemory(&pem.Block{Type: pemType, Bytes: der}))
	if err == nil {
		err = tmp.Sync()
	}
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return nil, fmt.Errorf("write identity: %w", err)
	}
	if err := os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
		return LoadCredential(path)
	} else if err != nil {
		return nil, fmt.Errorf("write identity: %w", err)
	}
	return c, nil
}

// ID returns the identity's name.
func (c *Credential) ID() ID { return IDOf(c.key.Public().(ed25519.PublicKey)) }

// Certificate returns a self-signed certificate whose key is the identity's
// key. Peers look at the key and at nothing else, so the certificate says
// nothing else: its name is the ID and its dates cover any clock.
func (c *Credential) Certificate() (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: string(c.ID())},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 §4.1.2.5: no expiry
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, c.key.Public(), c.key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: c.key}, nil
}

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

// maxCredential bounds an identity file; ours have 119 bytes.
const maxCredential = 16 << 10

// LoadCredential reads the identity in the file at path, PEM of PKCS #8. If
// there is no such file it makes an identity and writes it there, mode 0600,
// with any folder that is missing. A file that others may read is refused.
func LoadCredential(path string) (*Credential, error) {
	c, err := readCredential(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return c, err
	}
	if _, err := os.Lstat(path); err == nil {
		return nil, fmt.Errorf("read identity: %s is a link to a file that is not there: is a disk not mounted?", path)
	}
	if c, err = createCredential(path); errors.Is(err, fs.ErrExist) {
		return readCredential(path) // another process was first
	}
	return c, err
}

func readCredential(path string) (*Credential, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxCredential {
		return nil, fmt.Errorf("read identity: %s is not a file with a key", path)
	}
	if err := checkPrivate(path, info); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read identity: %w", err)
	}
	block, rest := pem.Decode(raw)
	if block == nil || block.Type != pemType || len(rest) > 0 {
		return nil, fmt.Errorf("identity file %s is not one PEM block of type %q: restore it from a backup, or move it away to get a new identity", path, pemType)
	}
	k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	key, ok := k.(ed25519.PrivateKey)
	if err != nil || !ok {
		return nil, fmt.Errorf("identity file %s does not hold an Ed25519 key: restore it from a backup, or move it away to get a new identity", path)
	}
	return &Credential{key: key}, nil
}

// createCredential fails with fs.ErrExist if the file is there by now.
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
	if err == nil {
		err = os.Link(tmp.Name(), path)
	}
	if err != nil {
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

package ohttp

import (
	"crypto/hpke"
	"encoding/binary"
	"errors"
	"fmt"
)

// maxKeyConfigs bounds an application/ohttp-keys body, in octets.
const maxKeyConfigs = 64 << 10

// KeyConfig is one key configuration of RFC 9458 section 3.1.
type KeyConfig struct {
	ID        uint8
	KEM       KEM
	PublicKey []byte  // as HPKE serialises it: 32 octets for X25519, 1216 for XWing
	Suites    []Suite // at least one, the node's favourite first
}

// ParseKeyConfigs reads an application/ohttp-keys body (RFC 9458 section 3.2).
// Configurations with an unknown KEM and suites that we do not support are left
// out, so the result may be empty. One encoding error refuses the whole
// collection, as the RFC demands: what each client makes of a damaged list must
// not tell clients apart. It does not look at the keys themselves: see
// NewPublicKey.
func ParseKeyConfigs(b []byte) ([]KeyConfig, error) {
	if len(b) == 0 {
		return nil, errors.New("parse key configurations: empty")
	}
	if len(b) > maxKeyConfigs {
		return nil, fmt.Errorf("parse key configurations: more than %d octets", maxKeyConfigs)
	}
	var configs []KeyConfig
	for len(b) > 0 {
		if len(b) < 2 {
			return nil, errors.New("parse key configurations: truncated length")
		}
		n := int(binary.BigEndian.Uint16(b))
		if b = b[2:]; n > len(b) {
			return nil, errors.New("parse key configurations: truncated configuration")
		}
		c, known, err := parseKeyConfig(b[:n])
		if err != nil {
			return nil, fmt.Errorf("parse key configurations: %w", err)
		}
		if known {
			configs = append(configs, c)
		}
		b = b[n:]
	}
	return configs, nil
}

// parseKeyConfig reads one configuration, all of b. known is false when its KEM or
// all its suites are foreign to us.
func parseKeyConfig(b []byte) (c KeyConfig, known bool, err error) {
	if len(b) < 3 {
		return c, false, errors.New("truncated header")
	}
	c.ID, c.KEM = b[0], KEM(binary.BigEndian.Uint16(b[1:]))
	npk, _, ok := c.KEM.sizes()
	if !ok {
		// The key's length is unknown, so there is nothing further to check.
		return c, false, nil
	}
	if b = b[3:]; len(b) < npk+2 {
		return c, false, errors.New("truncated public key")
	}
	c.PublicKey = append([]byte(nil), b[:npk]...)
	n := int(binary.BigEndian.Uint16(b[npk:]))
	if b = b[npk+2:]; n != len(b) || n == 0 || n%4 != 0 {
		return c, false, errors.New("symmetric algorithms have the wrong length")
	}
	for ; len(b) > 0; b = b[4:] {
		s := Suite{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}
		if s.keySize() > 0 {
			c.Suites = append(c.Suites, s)
		}
	}
	return c, len(c.Suites) > 0, nil
}

// MarshalKeyConfigs writes an application/ohttp-keys body. It refuses what
// ParseKeyConfigs would not give back unchanged.
func MarshalKeyConfigs(configs []KeyConfig) ([]byte, error) {
	if len(configs) == 0 {
		return nil, errors.New("marshal key configurations: none")
	}
	var b []byte
	for _, c := range configs {
		npk, _, ok := c.KEM.sizes()
		switch {
		case !ok:
			return nil, fmt.Errorf("marshal key configurations: unknown KEM %#04x", uint16(c.KEM))
		case len(c.PublicKey) != npk:
			return nil, errors.New("marshal key configurations: public key has the wrong length")
		case len(c.Suites) == 0 || len(c.Suites) > len(suites):
			return nil, errors.New("marshal key configurations: too few or too many suites")
		}
		b = binary.BigEndian.AppendUint16(b, uint16(1+2+npk+2+4*len(c.Suites)))
		b = append(b, c.ID)
		b = binary.BigEndian.AppendUint16(b, uint16(c.KEM))
		b = append(b, c.PublicKey...)
		b = binary.BigEndian.AppendUint16(b, uint16(4*len(c.Suites)))
		for _, s := range c.Suites {
			if s.keySize() == 0 {
				return nil, fmt.Errorf("marshal key configurations: unknown suite %#04x/%#04x", s.KDF, s.AEAD)
			}
			b = binary.BigEndian.AppendUint16(b, s.KDF)
			b = binary.BigEndian.AppendUint16(b, s.AEAD)
		}
	}
	if len(b) > maxKeyConfigs {
		return nil, fmt.Errorf("marshal key configurations: more than %d octets", maxKeyConfigs)
	}
	return b, nil
}

// PublicKey is a key configuration made ready for sealing: its key is parsed and a
// suite chosen, once. Use one for all requests to its node. It is immutable and
// safe for concurrent use.
type PublicKey struct {
	id    uint8
	kem   KEM
	suite Suite
	key   hpke.PublicKey
}

// NewPublicKey makes c ready for sealing, with the first of its suites that we
// support. It refuses a key that is not one of its KEM.
func NewPublicKey(c KeyConfig) (*PublicKey, error) {
	kem, err := hpke.NewKEM(uint16(c.KEM))
	if _, _, ok := c.KEM.sizes(); !ok || err != nil {
		return nil, fmt.Errorf("parse public key: unknown KEM %#04x", uint16(c.KEM))
	}
	key, err := kem.NewPublicKey(c.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("parse public key: %w", err)
	}
	for _, s := range c.Suites {
		if s.keySize() > 0 {
			return &PublicKey{c.ID, c.KEM, s, key}, nil
		}
	}
	return nil, errors.New("parse public key: no suite that we support")
}

// ParsePublicKey takes from an application/ohttp-keys body the first key of the
// given KEM. It never settles for another KEM: a client that wants XWing and is
// offered only X25519 is being talked down.
func ParsePublicKey(keys []byte, kem KEM) (*PublicKey, error) {
	configs, err := ParseKeyConfigs(keys)
	if err != nil {
		return nil, err
	}
	for _, c := range configs {
		if c.KEM == kem {
			return NewPublicKey(c)
		}
	}
	return nil, fmt.Errorf("parse public key: none with KEM %#04x", uint16(kem))
}

// header is what an encapsulated request starts with (RFC 9458 section 4.1):
// key id, KEM, KDF, AEAD.
type header [7]byte

func (k *PublicKey) header() (h header) {
	h[0] = k.id
	binary.BigEndian.PutUint16(h[1:], uint16(k.kem))
	binary.BigEndian.PutUint16(h[3:], k.suite.KDF)
	binary.BigEndian.PutUint16(h[5:], k.suite.AEAD)
	return h
}

func (h header) kem() KEM { return KEM(binary.BigEndian.Uint16(h[1:])) }

func (h header) suite() Suite {
	return Suite{binary.BigEndian.Uint16(h[3:]), binary.BigEndian.Uint16(h[5:])}
}

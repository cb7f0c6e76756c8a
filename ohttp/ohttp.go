// Package ohttp seals an HTTP request to a node's key and opens the answer
// while it streams, so that whatever carries the two can read neither.
//
// It is Oblivious HTTP (RFC 9458) and its chunked form
// (draft-ietf-ohai-chunked-ohttp-08) over binary HTTP (RFC 9292), with the HPKE
// of the standard library. [Transport] is the client's side, an
// http.RoundTripper; [Handler] is the node's side, an http.Handler. Between
// them lies one POST whose body is sealed and whose answer is sealed.
//
// spec/exchange.md is the exact text, spec/vectors/ has the vectors.
package ohttp

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hpke"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// Media types of RFC 9458 section 9, of the chunked draft and of RFC 9457. The
// exchange between Transport and Handler uses the chunked pair; the whole pair is
// there for any other RFC 9458 client.
const (
	mediaRequest    = "message/ohttp-req"
	mediaResponse   = "message/ohttp-res"
	mediaChunkedReq = "message/ohttp-chunked-req"
	mediaChunkedRes = "message/ohttp-chunked-res"
	mediaProblem    = "application/problem+json"
)

// Problem types: RFC 9458's two, and ours.
const (
	problemKey       = "https://iana.org/assignments/http-problem-types#ohttp-key"
	problemDate      = "https://iana.org/assignments/http-problem-types#date"
	problemReplay    = "https://token.place/problems/replay"
	problemMalformed = "https://token.place/problems/malformed"
	problemTooLarge  = "https://token.place/problems/too-large"
	problemMedia     = "https://token.place/problems/unsupported-media-type"
	problemMethod    = "https://token.place/problems/method-not-allowed"
	problemInternal  = "https://token.place/problems/internal"
)

// maxChunk is the most plaintext we put in a chunk, and the most we accept in
// one: the draft obliges a receiver to take 16384 octets, and we take no more.
const maxChunk = 16384

// tagSize is the length of the authentication tag of all three AEADs.
const tagSize = 16

// maxWhole bounds the plaintext of a message in the whole (not chunked) format,
// which has to be held in memory to be opened or sealed.
const maxWhole = 8 << 20

// ErrKey means that the node answered with RFC 9458's ohttp-key problem: it does
// not (or no longer) open what is sealed to this key. Fetch its key
// configurations again, check them, and seal again.
var ErrKey = errors.New("the node does not open requests sealed to this key: fetch its keys again")

// ErrTruncated means that a sealed message ended before its final chunk. What was
// read of it so far is authentic, and incomplete. It wraps io.ErrUnexpectedEOF.
var ErrTruncated = fmt.Errorf("sealed message ended before its final chunk: %w", io.ErrUnexpectedEOF)

// Errors of the formats. They stay inside: a Handler answers them with a problem,
// a Transport returns them wrapped.
var (
	errOpen      = errors.New("sealed message does not open")
	errEmpty     = errors.New("empty chunk before the final one")
	errOversized = errors.New("chunk larger than 16384 octets")
	errTooLarge  = errors.New("message too large")
)

// StatusError is an answer that was not sealed: the relay's or the node's own,
// readable by the relay, and not to be taken for the engine's.
type StatusError struct {
	Status      int    // HTTP status code
	ContentType string // as received; usually application/problem+json
	RetryAfter  string // the Retry-After field, "" if absent
	Body        []byte // at most 64 KiB of the body
}

// Error names the status and nothing else: the body is the relay's to choose.
func (e *StatusError) Error() string {
	return fmt.Sprintf("unsealed answer with status %d", e.Status)
}

// KEM identifies a key encapsulation mechanism in the HPKE registry.
type KEM uint16

// The KEMs that nodes publish. XWing is what our clients seal to.
const (
	X25519 KEM = 0x0020 // DHKEM(X25519, HKDF-SHA256), RFC 9180
	XWing  KEM = 0x647a // ML-KEM-768 with X25519, draft-ietf-hpke-pq
)

// sizes gives the octets of a public key (Npk) and of an encapsulated secret
// (Nenc), which crypto/hpke does not export; ok is false for any other KEM.
func (k KEM) sizes() (npk, nenc int, ok bool) {
	switch k {
	case X25519:
		return 32, 32, true
	case XWing:
		return 1216, 1120, true
	}
	return 0, 0, false
}

// Suite is one pair of HPKE algorithms that a key may be used with.
type Suite struct {
	KDF  uint16 // 0x0001 HKDF-SHA256, the only one we use
	AEAD uint16 // 0x0001 AES-128-GCM, 0x0002 AES-256-GCM, 0x0003 ChaCha20-Poly1305
}

const (
	kdfHKDFSHA256 = 0x0001
	aeadAES128    = 0x0001
	aeadAES256    = 0x0002
	aeadChaCha    = 0x0003

	// nonceSize is Nn of all three AEADs.
	nonceSize = 12
)

// suites lists what we support, in the order in which a node offers it: the
// widest key first, since the KEM of our clients is meant to outlast today.
var suites = []Suite{
	{kdfHKDFSHA256, aeadAES256},
	{kdfHKDFSHA256, aeadAES128},
	{kdfHKDFSHA256, aeadChaCha},
}

// keySize is Nk of the suite's AEAD, 0 if we do not support the suite.
func (s Suite) keySize() int {
	if s.KDF != kdfHKDFSHA256 {
		return 0
	}
	switch s.AEAD {
	case aeadAES128:
		return 16
	case aeadAES256, aeadChaCha:
		return 32
	}
	return 0
}

// secretSize is max(Nn, Nk): the length of the response nonce and of the secret
// it is mixed with.
func (s Suite) secretSize() int { return max(nonceSize, s.keySize()) }

// hpke returns the suite's algorithms; s is supported.
func (s Suite) hpke() (hpke.KDF, hpke.AEAD) {
	switch s.AEAD {
	case aeadAES128:
		return hpke.HKDFSHA256(), hpke.AES128GCM()
	case aeadAES256:
		return hpke.HKDFSHA256(), hpke.AES256GCM()
	}
	return hpke.HKDFSHA256(), hpke.ChaCha20Poly1305()
}

// aead returns the suite's AEAD under a key of keySize octets; s is supported.
func (s Suite) aead(key []byte) (cipher.AEAD, error) {
	if s.AEAD == aeadChaCha {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

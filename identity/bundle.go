package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/mod/sumdb/note"
)

// MaxModels is how many models a descriptor may list.
const MaxModels = 128

// Limits on what a node may say of itself. They bound what a relay keeps and a
// client downloads for each node.
const (
	maxNote     = 48 << 10
	maxModelID  = 256
	maxCapacity = 1000
	maxLife     = 2 * time.Hour
	clockSkew   = 5 * time.Minute
	noteType    = "token.place/descriptor/v1"
)

// Errors that callers branch on. Each comes wrapped with the node it is about.
var (
	ErrUntrusted = errors.New("nothing vouches for this node")
	ErrExpired   = errors.New("the descriptor is not valid now")
	ErrForged    = errors.New("the descriptor is not signed by the node it names")
)

// Model is a language model that a node offers.
type Model struct {
	// ContextLength is how many tokens prompt and answer may have together; 0
	// is unknown.
	ContextLength int    `json:"context_length"`
	ID            string `json:"id"` // as in an OpenAI request's "model"
}

// Descriptor is what a node says of itself for the next hour. Its JSON has its
// fields in the order of their names, the form in which it is signed.
type Descriptor struct {
	Capacity  int       `json:"capacity"` // exchanges at one time, 1 to 1000
	Keys      []byte    `json:"keys"`     // application/ohttp-keys, RFC 9458 §3
	Models    []Model   `json:"models"`
	NotAfter  time.Time `json:"not_after"` // whole seconds, UTC
	NotBefore time.Time `json:"not_before"`
}

// signed is the JSON of a descriptor note: the descriptor and whose it is.
type signed struct {
	Capacity  int       `json:"capacity"`
	Keys      []byte    `json:"keys"`
	Models    []Model   `json:"models"`
	Node      ID        `json:"node"`
	NotAfter  time.Time `json:"not_after"`
	NotBefore time.Time `json:"not_before"`
}

// Bundle is what a client needs to trust a node: its public key and a
// descriptor signed with it.
type Bundle struct {
	Key        string `json:"key"`        // verifier key of C2SP signed-note, named after the node
	Descriptor string `json:"descriptor"` // signed note
}

// Trust is what a client or a relay believes before it has seen any bundle.
type Trust struct {
	Nodes []ID // pinned: these nodes, and only these, are trusted
}

// Sign makes the bundle for d. It fails if d is outside the limits that Open
// enforces.
func (c *Credential) Sign(d Descriptor) (Bundle, error) {
	d.NotBefore, d.NotAfter = d.NotBefore.UTC().Truncate(time.Second), d.NotAfter.UTC().Truncate(time.Second)
	if d.Models == nil {
		d.Models = []Model{}
	}
	if err := d.check(); err != nil {
		return Bundle{}, fmt.Errorf("sign descriptor: %w", err)
	}
	id := c.ID()
	text, err := canonical(signed{Node: id, Capacity: d.Capacity, Keys: d.Keys, Models: d.Models, NotAfter: d.NotAfter, NotBefore: d.NotBefore})
	if err != nil {
		return Bundle{}, fmt.Errorf("sign descriptor: %w", err)
	}
	vkey, err := note.NewEd25519VerifierKey(string(id), c.key.Public().(ed25519.PublicKey))
	if err != nil {
		return Bundle{}, fmt.Errorf("sign descriptor: %w", err)
	}
	msg, err := note.Sign(&note.Note{Text: noteType + "\n" + string(text) + "\n"}, signer{c, vkey})
	if err != nil {
		return Bundle{}, fmt.Errorf("sign descriptor: %w", err)
	}
	return Bundle{Key: vkey, Descriptor: string(msg)}, nil
}

// signer signs notes with the credential's key, so that the key never takes
// the text form that note.NewSigner reads.
type signer struct {
	c    *Credential
	vkey string
}

func (s signer) Name() string                    { return string(s.c.ID()) }
func (s signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.c.key, msg), nil }
func (s signer) KeyHash() uint32 {
	v, err := note.NewVerifier(s.vkey)
	if err != nil {
		panic("internal error: own verifier key: " + err.Error())
	}
	return v.KeyHash()
}

// Open checks that the bundle is consistent in itself at the time now: the
// descriptor is well formed, in force, and signed by the key that the ID is
// derived from. It says nothing of whether anybody should trust that ID.
func (b Bundle) Open(now time.Time) (ID, Descriptor, error) {
	id, verifier, err := parseKey(b.Key)
	if err != nil {
		return "", Descriptor{}, fmt.Errorf("%w: %v", ErrForged, err)
	}
	if len(b.Descriptor) > maxNote {
		return "", Descriptor{}, fmt.Errorf("%w: %d bytes are more than %d", ErrForged, len(b.Descriptor), maxNote)
	}
	n, err := note.Open([]byte(b.Descriptor), note.VerifierList(verifier))
	if err != nil {
		// Not %w: note's error quotes the note, which is the peer's to choose.
		return "", Descriptor{}, fmt.Errorf("node %s: %w", id, ErrForged)
	}
	d, err := parseDescriptor(id, n.Text)
	if err != nil {
		return "", Descriptor{}, fmt.Errorf("node %s: %w: %v", id, ErrForged, err)
	}
	if now.Before(d.NotBefore.Add(-clockSkew)) || !now.Before(d.NotAfter) {
		return "", Descriptor{}, fmt.Errorf("node %s: %w: it holds from %s to %s and it is %s here; check both clocks",
			id, ErrExpired, d.NotBefore.Format(time.RFC3339), d.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return id, d, nil
}

// Verify is Open, and then that t vouches for the node.
func Verify(b Bundle, t Trust, now time.Time) (ID, Descriptor, error) {
	id, d, err := b.Open(now)
	if err != nil {
		return "", Descriptor{}, err
	}
	if !slices.Contains(t.Nodes, id) {
		return "", Descriptor{}, fmt.Errorf("node %s: %w: pin it with --node %s if you know whose it is", id, ErrUntrusted, id)
	}
	return id, d, nil
}

// parseKey reads a note verifier key named after the ID of the key in it.
func parseKey(vkey string) (ID, note.Verifier, error) {
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return "", nil, errors.New("the verifier key is malformed")
	}
	// The form is name+hash+base64(algorithm byte, key), and NewVerifier checked
	// the hash. Encoding the key again refuses other spellings of the same.
	raw, err := base64.StdEncoding.DecodeString(vkey[strings.LastIndexByte(vkey[:len(verifier.Name())+10], '+')+1:])
	if err != nil || len(raw) != 1+ed25519.PublicKeySize {
		return "", nil, errors.New("the verifier key is not Ed25519")
	}
	id := IDOf(raw[1:])
	if want, err := note.NewEd25519VerifierKey(string(id), raw[1:]); err != nil || vkey != want {
		return "", nil, fmt.Errorf("the verifier key is not the one of %s", id)
	}
	return id, verifier, nil
}

func parseDescriptor(id ID, text string) (Descriptor, error) {
	body, ok := strings.CutPrefix(text, noteType+"\n")
	if !ok {
		return Descriptor{}, fmt.Errorf("its first line is not %q", noteType)
	}
	var s signed
	dec := json.NewDecoder(strings.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return Descriptor{}, errors.New("its JSON is malformed")
	}
	// One canonical form: this refuses repeated fields, other spellings of the
	// same value, and trailing bytes, all at once.
	if again, err := canonical(s); err != nil || string(again)+"\n" != body {
		return Descriptor{}, errors.New("its JSON is not in canonical form")
	}
	if s.Node != id {
		return Descriptor{}, errors.New("it names another node")
	}
	d := Descriptor{Capacity: s.Capacity, Keys: s.Keys, Models: s.Models, NotAfter: s.NotAfter, NotBefore: s.NotBefore}
	return d, d.check()
}

// canonical encodes s with its fields in order of their names and nothing
// escaped that need not be (RFC 8785, for the values that check lets through).
func canonical(s signed) ([]byte, error) {
	s.NotBefore, s.NotAfter = s.NotBefore.UTC().Truncate(time.Second), s.NotAfter.UTC().Truncate(time.Second)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func (d Descriptor) check() error {
	switch {
	case d.Capacity < 1 || d.Capacity > maxCapacity:
		return fmt.Errorf("capacity %d is not within 1 to %d", d.Capacity, maxCapacity)
	case len(d.Keys) < 2 || len(d.Keys) != keysLen(d.Keys):
		return errors.New("its key configurations are malformed")
	case len(d.Models) > MaxModels:
		return fmt.Errorf("%d models are more than %d", len(d.Models), MaxModels)
	case !d.NotBefore.Before(d.NotAfter) || d.NotAfter.Sub(d.NotBefore) > maxLife:
		return fmt.Errorf("it must hold for some time up to %v", maxLife)
	}
	for i, m := range d.Models {
		if m.ContextLength < 0 || m.ContextLength > 1<<30 {
			return fmt.Errorf("context length of model %d is out of range", i+1)
		}
		if !ValidModelID(m.ID) {
			return fmt.Errorf("id of model %d is not 1 to %d bytes of printable UTF-8", i+1, maxModelID)
		}
		if slices.ContainsFunc(d.Models[:i], func(o Model) bool { return o.ID == m.ID }) {
			return fmt.Errorf("model %d is listed twice", i+1)
		}
	}
	return nil
}

// keysLen walks the length prefixes of application/ohttp-keys and returns how
// many bytes they cover, so that a relay, which never parses keys, still
// carries only whole lists.
func keysLen(b []byte) int {
	n := 0
	for len(b)-n >= 2 {
		n += 2 + int(binary.BigEndian.Uint16(b[n:]))
	}
	return n
}

// ValidModelID reports whether a descriptor may name a model s: 1 to 256 bytes of
// printable UTF-8.
func ValidModelID(s string) bool {
	return s != "" && len(s) <= maxModelID && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError })
}

package identity

import (
	"crypto/ed25519"

	"golang.org/x/mod/sumdb/note"
)

// SignText signs any text as c would sign a descriptor.
func SignText(c *Credential, text string) string {
	vkey, err := note.NewEd25519VerifierKey(string(c.ID()), c.key.Public().(ed25519.PublicKey))
	if err != nil {
		panic(err)
	}
	msg, err := note.Sign(&note.Note{Text: text}, signer{c, vkey})
	if err != nil {
		panic(err)
	}
	return string(msg)
}

// FromSeed returns the credential of an Ed25519 seed.
func FromSeed(seed []byte) *Credential { return &Credential{key: ed25519.NewKeyFromSeed(seed)} }

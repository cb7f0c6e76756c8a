package identity_test

import (
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"testing"

	"token.place/identity"
)

var update = flag.Bool("update", false, "write spec/vectors/identity.json")

const vectorFile = "../spec/vectors/identity.json"

// vector is one entry of spec/vectors/identity.json.
type vector struct {
	Name       string              `json:"name"`
	Seed       string              `json:"seed"`       // Ed25519 seed, hex
	PublicKey  string              `json:"public_key"` // hex
	ID         identity.ID         `json:"id"`
	Descriptor identity.Descriptor `json:"descriptor"`
	Bundle     identity.Bundle     `json:"bundle"`
}

func TestVectors(t *testing.T) {
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	if err := json.Unmarshal(raw, &vectors); err != nil || len(vectors) == 0 {
		t.Fatalf("%d vectors, %v", len(vectors), err)
	}
	for i, v := range vectors {
		seed, _ := hex.DecodeString(v.Seed)
		c := identity.FromSeed(seed)
		pub := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
		b, err := c.Sign(v.Descriptor)
		if err != nil {
			t.Fatalf("%s: %v", v.Name, err)
		}
		if *update {
			vectors[i].PublicKey, vectors[i].ID, vectors[i].Bundle = hex.EncodeToString(pub), c.ID(), b
			continue
		}
		if hex.EncodeToString(pub) != v.PublicKey || c.ID() != v.ID || b != v.Bundle {
			t.Errorf("%s: signed as %s, %+v", v.Name, c.ID(), b)
		}
		id, d, err := v.Bundle.Open(v.Descriptor.NotBefore)
		if err != nil || id != v.ID || len(d.Models) != len(v.Descriptor.Models) {
			t.Errorf("%s: opened as %s, %+v, %v", v.Name, id, d, err)
		}
	}
	if *update {
		out, _ := json.MarshalIndent(vectors, "", "  ")
		os.WriteFile(vectorFile, append(out, '\n'), 0o644)
	}
}

// Package pocket answers the OpenAI API with a tiny language model that is part
// of the binary, so that a network has something real to run before anyone
// installs an engine. It is a demonstration model, about a million weights
// taught a small dictionary: recipe/README.md has what it can do and how it was made.
//
// Everything runs in Go, on one thread for each answer. Nothing of an exchange
// is kept once it is answered.
package pocket

import (
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"sync"
)

//go:embed pocket.gguf
var weights []byte

// Notice must be shown to whoever gets a copy of the weights, and so of any
// program that this package is in.
//
//go:embed NOTICE.wordnet
var Notice string

const modelID = "pocket"

// embedded is the model in the binary, read once for every Pocket.
var embedded = sync.OnceValues(func() (*model, error) {
	g, err := parseGGUF(weights)
	if err != nil {
		return nil, err
	}
	return newModel(g)
})

var fingerprint = sync.OnceValue(func() string {
	return fmt.Sprintf("pocket-%x", sha256.Sum256(weights))[:len("pocket-")+10]
})

// Config says how much a Pocket does at once. The zero value is usable.
type Config struct {
	// Slots is how many answers are generated at the same time, each on a
	// thread of its own with 4 MiB of memory; 0 means 2.
	Slots int
	// Queue is how many more requests may wait for a slot, in the order they
	// came; 0 means 16. Beyond that a request is refused with 429.
	Queue int
}

// Pocket is the embedded model as an http.Handler. It may be used by any number
// of goroutines.
type Pocket struct {
	model *model
	queue *queue
}

// New returns a Pocket that is ready to answer.
func New(c Config) (*Pocket, error) {
	if c.Slots < 0 || c.Queue < 0 {
		return nil, errors.New("pocket: Slots and Queue must not be negative")
	}
	if c.Slots == 0 {
		c.Slots = 2
	}
	if c.Queue == 0 {
		c.Queue = 16
	}
	m, err := embedded()
	if err != nil {
		return nil, fmt.Errorf("load embedded model: %w", err)
	}
	p := &Pocket{model: m, queue: &queue{depth: c.Queue}}
	for range c.Slots {
		p.queue.free = append(p.queue.free, m.session())
	}
	return p, nil
}

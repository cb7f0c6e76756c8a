package engine

import (
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"token.place/openai"
)

// detectTimeout bounds the search: what is on this machine answers at once.
const detectTimeout = 500 * time.Millisecond

// places are where engines listen unless they are told otherwise, in the order
// in which they are preferred.
var places = []string{
	"http://127.0.0.1:11434", // Ollama
	"http://127.0.0.1:1234",  // LM Studio
	"http://127.0.0.1:8000",  // vLLM
	"http://127.0.0.1:8080",  // llama-server
}

// DetectConfig says how to look for engines.
type DetectConfig struct {
	// Dial connects to 127.0.0.1; nil means a net.Dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
}

// Found is an engine on this machine.
type Found struct {
	Name   string // as Engine.Name
	URL    string // for Config
	Models []openai.Model
}

// Detect looks for engines on the default ports of this machine and returns
// those that answer, in a fixed order; an engine may have no models. It takes at
// most half a second. The only error is that ctx ended.
//
// What names "token.place" as the owner of a model is not an engine but this
// network, and taking it for one would send exchanges round in circles.
func Detect(ctx context.Context, cfg DetectConfig) ([]Found, error) {
	search, cancel := context.WithTimeout(ctx, detectTimeout)
	defer cancel()
	found := make([]*Found, len(places))
	var wg sync.WaitGroup
	for i, place := range places {
		wg.Go(func() { found[i] = look(search, place, cfg) })
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var all []Found
	for _, f := range found {
		if f != nil {
			all = append(all, *f)
		}
	}
	return all, nil
}

// look returns the engine at place, or nil.
func look(ctx context.Context, place string, cfg DetectConfig) *Found {
	e, err := New(Config{URL: place, Dial: cfg.Dial})
	if err != nil {
		panic("internal error: " + err.Error()) // places are constants
	}
	defer e.Close()
	models, err := e.Models(ctx)
	ours := func(m openai.Model) bool { return m.OwnedBy == "token.place" }
	if err != nil || slices.ContainsFunc(models, ours) {
		return nil
	}
	return &Found{Name: e.Name(), URL: place, Models: models}
}

package devnet

import (
	"context"
	"fmt"

	"token.place/engine"
	"token.place/engine/pocket"
)

// OpenEngine opens what --engine names: "pocket", the model in this program; the
// URL of an OpenAI-compatible server; or "auto", the first engine on this
// machine that has a model, else pocket. key is the engine's API key, or "".
func OpenEngine(ctx context.Context, which, key string) (*engine.Engine, error) {
	switch which {
	case "pocket":
		return newPocket()
	case "auto", "":
		found, err := engine.Detect(ctx, engine.DetectConfig{})
		if err != nil {
			return nil, fmt.Errorf("look for an engine: %w", err)
		}
		for _, f := range found {
			if len(f.Models) > 0 {
				return engine.New(engine.Config{URL: f.URL, Name: f.Name, Key: key})
			}
		}
		return newPocket()
	default:
		return engine.New(engine.Config{URL: which, Key: key})
	}
}

func newPocket() (*engine.Engine, error) {
	model, err := pocket.New(pocket.Config{})
	if err != nil {
		return nil, err
	}
	return engine.New(engine.Config{Handler: model})
}

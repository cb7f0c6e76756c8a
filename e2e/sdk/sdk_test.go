// Package sdk runs foreign OpenAI clients, unmodified, through a whole network:
// they know a base URL and nothing of token.place.
package sdk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"token.place/e2e/internal/stub"
	"token.place/e2e/internal/testnet"
)

const (
	question = "What is a river?"
	answer   = "River: a large natural stream of water."
	weather  = "What is the weather in Paris?"
)

// A chatter is a foreign client at a base URL.
type chatter interface {
	models(ctx context.Context) ([]string, error)
	chat(ctx context.Context, model, prompt string) (string, error)
	// stream also returns in how many parts the text came.
	stream(ctx context.Context, model, prompt string, each func()) (text string, parts int, err error)
	// tool offers get_weather(city) and returns the call that the model makes.
	tool(ctx context.Context, model, prompt string) (name, arguments string, err error)
	// refused returns what the client's own error type holds of err.
	refused(err error) (status int, code, message string, ok bool)
}

var chatters = map[string]func(baseURL string) chatter{
	"openai-go": newOfficial,
	"go-openai": newSashabaranov,
}

// overEngines runs f with the base URL of a network for each engine: pocket
// always, and llama-server if it is to be had. It says which ran.
func overEngines(t *testing.T, f func(t *testing.T, baseURL string)) {
	t.Run("pocket", func(t *testing.T) {
		f(t, testnet.StartDev(t, testnet.Command{}, "--engine", "pocket").BaseURL)
	})
	t.Run("llama-server", func(t *testing.T) {
		url, err := testnet.StartLlama(t)
		if err != nil {
			fmt.Fprintf(os.Stderr, "e2e: %s ran with pocket only: llama-server cannot be had: %v\n", t.Name(), err)
			t.Skipf("llama-server cannot be had, so this ran with pocket only: %v", err)
		}
		f(t, testnet.StartDev(t, testnet.Command{}, "--engine", url).BaseURL)
		fmt.Fprintf(os.Stderr, "e2e: %s ran\n", t.Name())
	})
}

func TestGoClients(t *testing.T) {
	overEngines(t, func(t *testing.T, baseURL string) {
		for name, open := range chatters {
			t.Run(name, func(t *testing.T) { converse(t, open(baseURL)) })
		}
	})
}

func converse(t *testing.T, c chatter) {
	ctx, cancel := context.WithTimeout(t.Context(), testnet.Patience)
	defer cancel()
	models, err := c.models(ctx)
	if err != nil || len(models) != 1 || models[0] != "pocket" {
		t.Errorf("models: %q, %v", models, err)
	}
	text, err := c.chat(ctx, "pocket", question)
	if err != nil || strings.TrimSpace(text) != answer {
		t.Errorf("chat: %q, %v", text, err)
	}
	text, parts, err := c.stream(ctx, "pocket", question, func() {})
	if err != nil || strings.TrimSpace(text) != answer || parts < 3 {
		t.Errorf("stream: %q in %d parts, %v", text, parts, err)
	}
	name, arguments, err := c.tool(ctx, "pocket", weather)
	if err != nil || name != "get_weather" || !strings.Contains(arguments, `"city"`) {
		t.Errorf("tool: %s(%s), %v", name, arguments, err)
	}
	_, err = c.chat(ctx, "no-such-model", question)
	status, code, message, ok := c.refused(err)
	if !ok || status != 404 || code != "model_not_found" || !strings.Contains(message, "no-such-model") || !strings.Contains(message, "pocket") {
		t.Errorf("unknown model: %v (status %d, code %q, message %q)", err, status, code, message)
	}
}

// An aborted answer stops the engine.
func TestGoClientsAbort(t *testing.T) {
	gone := make(chan time.Time, 1)
	dev := testnet.StartDev(t, testnet.Command{}, "--engine", stub.New(t, stub.Drip(gone)).URL)
	for name, open := range chatters {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			parts := 0
			_, _, err := open(dev.BaseURL).stream(ctx, "stub", "count to a million", func() {
				if parts++; parts == 3 {
					cancel()
				}
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the client's error is %v, want context.Canceled", err)
			}
			select {
			case <-gone:
			case <-time.After(testnet.Patience):
				t.Fatal("the engine was not stopped")
			}
		})
	}
}

package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"token.place/openai"
)

const (
	// askTimeout bounds all questions of one call of Models.
	askTimeout = 10 * time.Second
	maxAnswer  = 4 << 20 // bytes
	// maxShown is how many of Ollama's models are looked at one by one.
	maxShown = 32
)

// Models asks the engine which models it has and finds out which engine it is.
// The context length of a model is what the engine really uses where it tells,
// else what the model was made for, else 0. The error is ErrUnavailable, ErrKey
// or ErrBadAnswer, wrapped; no models is no error.
func (e *Engine) Models(ctx context.Context) ([]openai.Model, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	status, header, body, err := e.ask(ctx, http.MethodGet, "/v1/models", "")
	switch {
	case err != nil:
		return nil, fmt.Errorf("ask for models: %w", err)
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		return nil, fmt.Errorf("ask for models: %w", ErrKey)
	case status == http.StatusServiceUnavailable: // llama-server while it loads
		return nil, fmt.Errorf("ask for models: %w", ErrUnavailable)
	case status != http.StatusOK:
		return nil, fmt.Errorf("ask for models: status %d: %w", status, ErrBadAnswer)
	}
	models, err := openai.ReadModels(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("ask for models: %w", ErrBadAnswer)
	}
	if e.cfg.Handler == nil {
		name := e.detail(ctx, header, models)
		e.name.Store(&name)
	}
	return models, nil
}

// detail finds out which engine this is and fills in what models leaves out.
// An engine that does not tell keeps what is there.
func (e *Engine) detail(ctx context.Context, header http.Header, models openai.ModelList) (name string) {
	owner := ""
	if len(models) > 0 {
		owner = models[0].OwnedBy
	}
	switch {
	case owner == "llamacpp" || header.Get("Server") == "llama.cpp":
		e.llamaServer(ctx, models)
		return "llama-server"
	case owner == "vllm":
		return "vLLM"
	case owner == "organization_owner":
		e.lmStudio(ctx, models)
		return "LM Studio"
	case e.ollama(ctx, models):
		return "Ollama"
	case e.lmStudio(ctx, models):
		return "LM Studio"
	}
	return "other"
}

// llamaServer asks for the length that one slot has: the models say only what
// they were trained for.
func (e *Engine) llamaServer(ctx context.Context, models openai.ModelList) {
	var props struct {
		Settings struct {
			Context int `json:"n_ctx"`
		} `json:"default_generation_settings"`
	}
	if e.get(ctx, http.MethodGet, "/props", "", &props) && props.Settings.Context > 0 && len(models) == 1 {
		models[0].ContextLength = props.Settings.Context
	}
}

// ollama reports whether the engine is Ollama. A model that runs has a length,
// one that does not may have one in its description; the length it was trained
// for says nothing, as the default is much less.
func (e *Engine) ollama(ctx context.Context, models openai.ModelList) bool {
	var version struct{ Version string }
	if !e.get(ctx, http.MethodGet, "/api/version", "", &version) || version.Version == "" {
		return false
	}
	var running struct {
		Models []struct {
			Name    string
			Context int `json:"context_length"`
		}
	}
	e.get(ctx, http.MethodGet, "/api/ps", "", &running)
	lengths := map[string]int{}
	for _, m := range running.Models {
		lengths[m.Name] = m.Context
	}
	for i := range models {
		m := &models[i]
		if m.ContextLength = max(0, lengths[m.ID]); m.ContextLength > 0 || i >= maxShown {
			continue
		}
		question, err := json.Marshal(map[string]string{"model": m.ID})
		var shown struct{ Parameters string }
		if err == nil && e.get(ctx, http.MethodPost, "/api/show", string(question), &shown) {
			m.ContextLength = parameter(shown.Parameters, "num_ctx")
		}
	}
	return true
}

// parameter finds a number in lines like "num_ctx    8192", or returns 0.
func parameter(lines, name string) (n int) {
	for line := range strings.Lines(lines) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == name {
			if json.Unmarshal([]byte(f[1]), &n) == nil && n > 0 {
				return n
			}
		}
	}
	return 0
}

// lmStudio reports whether the engine is LM Studio, whose own list tells the
// length that is loaded.
func (e *Engine) lmStudio(ctx context.Context, models openai.ModelList) bool {
	var own openai.ModelList
	if !e.get(ctx, http.MethodGet, "/api/v0/models", "", &own) {
		return false
	}
	for _, m := range own {
		for i := range models {
			if models[i].ID == m.ID && m.ContextLength > 0 {
				models[i].ContextLength = m.ContextLength
			}
		}
	}
	return true
}

// get asks one of an engine's own questions and reports whether there was an
// answer that fits into v.
func (e *Engine) get(ctx context.Context, method, path, question string, v any) bool {
	status, _, body, err := e.ask(ctx, method, path, question)
	return err == nil && status == http.StatusOK && json.Unmarshal(body, v) == nil
}

// ask sends a small request to the engine, wherever it is.
func (e *Engine) ask(ctx context.Context, method, path, question string) (int, http.Header, []byte, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://engine"+path, strings.NewReader(question))
	if err != nil {
		return 0, nil, nil, err
	}
	if e.cfg.Handler != nil {
		w := &answer{header: http.Header{}, status: http.StatusOK}
		e.cfg.Handler.ServeHTTP(w, r)
		return w.status, w.header, w.body.Bytes(), nil
	}
	out, _, err := e.request(ctx, r)
	if err != nil {
		return 0, nil, nil, err
	}
	res, err := e.transport.RoundTrip(out)
	if err != nil {
		if ctx.Err() != nil {
			return 0, nil, nil, errors.Join(ErrUnavailable, ctx.Err())
		}
		return 0, nil, nil, ErrUnavailable // the cause has an address in it
	}
	defer res.Body.Close()
	if res.StatusCode < 200 { // 101: the body is the bare connection, which ctx does not end
		return 0, nil, nil, ErrBadAnswer
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return 0, nil, nil, ErrBadAnswer
	}
	return res.StatusCode, res.Header, body, nil
}

// answer keeps what a Handler writes, up to maxAnswer.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header    { return a.header }
func (a *answer) WriteHeader(status int) { a.status = status }
func (a *answer) Write(p []byte) (int, error) {
	if a.body.Len()+len(p) > maxAnswer {
		return 0, io.ErrShortWrite
	}
	return a.body.Write(p)
}

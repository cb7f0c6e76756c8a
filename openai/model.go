package openai

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Model is an entry of GET /v1/models.
type Model struct {
	ID            string
	Created       int64  // Unix seconds, or 0
	OwnedBy       string // or ""
	ContextLength int    // tokens of prompt and answer together, or 0 when not known
}

// ModelList is the answer to GET /v1/models.
type ModelList []Model

const (
	maxModels    = 1000
	maxModelList = 4 << 20 // bytes; some servers put a page of prose in each entry
)

// ErrModels is what reading a list of models gives for an answer that is none.
var ErrModels = errors.New("not a list of models")

// ReadModels reads the answer of an engine to GET /v1/models, at most 4 MiB and
// 1,000 models; more is an error.
func ReadModels(r io.Reader) (ModelList, error) {
	body, err := io.ReadAll(io.LimitReader(r, maxModelList+1))
	if err != nil {
		return nil, fmt.Errorf("read models: %w", err)
	}
	if len(body) > maxModelList {
		return nil, fmt.Errorf("read models: the list is longer than %d bytes", maxModelList)
	}
	var l ModelList
	if err := json.Unmarshal(body, &l); err != nil {
		return nil, fmt.Errorf("read models: %w", ErrModels)
	}
	return l, nil
}

type wireList struct {
	Object string             `json:"object"`
	Data   *[]json.RawMessage `json:"data"`
}

type wireModel struct {
	ID            string `json:"id"`
	Object        string `json:"object"`
	Created       int64  `json:"created"`
	OwnedBy       string `json:"owned_by"`
	ContextLength int    `json:"context_length,omitempty"`
}

// MarshalJSON writes OpenAI's list, with an empty array for no models. An
// invalid id is an error.
func (l ModelList) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Object string  `json:"object"`
		Data   []Model `json:"data"`
	}{"list", append([]Model{}, l...)})
}

// UnmarshalJSON reads OpenAI's list and what engines make of it: "data" may be
// null (Ollama without models), entries without a valid id and repeated ids are
// left out, fields that are not known or have another type are not looked at.
func (l *ModelList) UnmarshalJSON(b []byte) error {
	var w wireList
	if err := json.Unmarshal(b, &w); err != nil {
		return ErrModels
	}
	*l = nil
	if w.Data == nil {
		if w.Object != "list" {
			return ErrModels
		}
		return nil
	}
	if len(*w.Data) > maxModels {
		return ErrModels
	}
	seen := make(map[string]bool, len(*w.Data))
	for _, raw := range *w.Data {
		var m Model
		if json.Unmarshal(raw, &m) == nil && !seen[m.ID] {
			seen[m.ID] = true
			*l = append(*l, m)
		}
	}
	return nil
}

// MarshalJSON writes OpenAI's model object, with context_length when it is
// known. An invalid id is an error.
func (m Model) MarshalJSON() ([]byte, error) {
	if !ValidID(m.ID) {
		return nil, errors.New("encode model: invalid id")
	}
	return json.Marshal(wireModel{m.ID, "model", m.Created, m.OwnedBy, m.ContextLength})
}

// UnmarshalJSON reads OpenAI's model object. The context length is the first of
// these that is a positive number: what is loaded, then what is set, then what
// the model was trained for.
func (m *Model) UnmarshalJSON(b []byte) error {
	var w struct {
		ID      string          `json:"id"`
		Created json.RawMessage `json:"created"`
		OwnedBy json.RawMessage `json:"owned_by"`

		Loaded  json.RawMessage `json:"loaded_context_length"` // LM Studio
		MaxLen  json.RawMessage `json:"max_model_len"`         // vLLM
		Context json.RawMessage `json:"context_length"`        // ours and others'
		Window  json.RawMessage `json:"context_window"`
		Max     json.RawMessage `json:"max_context_length"` // LM Studio
		Meta    json.RawMessage `json:"meta"`               // llama-server
	}
	if err := json.Unmarshal(b, &w); err != nil {
		return errors.New("decode model: not a model")
	}
	if !ValidID(w.ID) {
		return errors.New("decode model: invalid id")
	}
	var meta struct {
		Context json.RawMessage `json:"n_ctx"`
		Trained json.RawMessage `json:"n_ctx_train"`
	}
	if len(w.Meta) > 0 && w.Meta[0] == '{' {
		json.Unmarshal(w.Meta, &meta) // what is not there stays nil
	}
	*m = Model{ID: w.ID, Created: integer(w.Created), OwnedBy: text(w.OwnedBy)}
	for _, raw := range []json.RawMessage{w.Loaded, meta.Context, w.MaxLen, w.Context, w.Window, w.Max, meta.Trained} {
		if n := integer(raw); n > 0 && n <= 1<<31-1 {
			m.ContextLength = int(n)
			break
		}
	}
	return nil
}

// integer reads a whole number, or returns 0.
func integer(raw json.RawMessage) int64 {
	if n, err := strconv.ParseInt(string(raw), 10, 64); err == nil {
		return n
	}
	if f, err := strconv.ParseFloat(string(raw), 64); err == nil && f > -1<<53 && f < 1<<53 && f == float64(int64(f)) {
		return int64(f)
	}
	return 0
}

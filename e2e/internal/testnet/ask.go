package testnet

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// A Question is one request for a chat completion.
type Question struct {
	Client *http.Client // http.DefaultClient
	Base   string       // base URL, with /v1
	Model  string
	Prompt string
	Stream bool
	Header http.Header // besides Content-Type
}

// An Answer is what came of it, while it comes and after. Text, Events, Done
// and Failed may be used once Finished is closed.
type Answer struct {
	Finished chan struct{}

	Status int
	Text   string // of the content
	Raw    string // the whole body
	Events int    // that had content
	Done   bool   // a stream ended in [DONE]
	Failed string // the message of an error object or error event
	Err    error  // of the transfer

	mu   sync.Mutex // guards seen
	seen string
	told chan struct{} // closed and replaced when seen grows
}

// Whole reports whether the answer looks complete to an ordinary client.
func (a *Answer) Whole(stream bool) bool {
	return a.Err == nil && a.Failed == "" && a.Status == http.StatusOK && (a.Done || !stream)
}

// Seen waits until the text so far contains part, or the answer has ended.
func (a *Answer) Seen(part string) bool {
	for {
		a.mu.Lock()
		ok, told := strings.Contains(a.seen, part), a.told
		a.mu.Unlock()
		if ok {
			return true
		}
		select {
		case <-told:
		case <-a.Finished:
			a.mu.Lock()
			defer a.mu.Unlock()
			return strings.Contains(a.seen, part)
		}
	}
}

// Ask sends the question and returns at once.
func (q Question) Ask(ctx context.Context) *Answer {
	a := &Answer{Finished: make(chan struct{}), told: make(chan struct{})}
	go func() {
		defer close(a.Finished)
		ctx, cancel := context.WithTimeout(ctx, Patience)
		defer cancel()
		a.Err = q.ask(ctx, a)
	}()
	return a
}

// Get sends the question and waits for the end of the answer.
func (q Question) Get(ctx context.Context) *Answer {
	a := q.Ask(ctx)
	<-a.Finished
	return a
}

func (q Question) ask(ctx context.Context, a *Answer) error {
	body, err := json.Marshal(map[string]any{
		"model": q.Model, "stream": q.Stream, "temperature": 0,
		"messages": []map[string]string{{"role": "user", "content": q.Prompt}},
	})
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, q.Base+"/chat/completions", bytes.NewReader(body))
	if err != nil {
		return err
	}
	if q.Header != nil {
		req.Header = q.Header.Clone()
	}
	req.Header.Set("Content-Type", "application/json")
	client := q.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	a.Status = res.StatusCode
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		return a.readEvents(res.Body)
	}
	raw, err := io.ReadAll(res.Body)
	a.Raw = string(raw)
	if err != nil {
		return err
	}
	return a.take(raw)
}

// take reads one completion object, chunk or error object.
func (a *Answer) take(raw []byte) error {
	type said struct{ Content string }
	var object struct {
		Choices []struct{ Message, Delta said }
		Error   *struct{ Message string }
	}
	if err := json.Unmarshal(raw, &object); err != nil {
		return fmt.Errorf("answer %.80q: %w", raw, err)
	}
	if object.Error != nil {
		a.Failed = object.Error.Message
	}
	for _, c := range object.Choices {
		if text := c.Message.Content + c.Delta.Content; text != "" {
			a.Text += text
			a.Events++
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = a.Text
	close(a.told)
	a.told = make(chan struct{})
	return nil
}

func (a *Answer) readEvents(body io.Reader) error {
	lines := bufio.NewReader(body)
	for {
		line, err := lines.ReadString('\n')
		a.Raw += line
		if data, ok := strings.CutPrefix(strings.TrimSpace(line), "data:"); ok {
			if data = strings.TrimSpace(data); data == "[DONE]" {
				a.Done = true
			} else if err := a.take([]byte(data)); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"
	"token.place/client"
	"token.place/openai"
)

const chatUsage = `Usage:

	tokenplace chat [--model M] [--system TEXT] [--url URL] [--json] [PROMPT]
	tokenplace chat --relay URL --node ID [flags] [PROMPT]

Talks to a model. With a PROMPT, or with text piped in, it prints the answer as it
comes and ends; a prompt and piped text are sent together. In a terminal without a
PROMPT it keeps a conversation: an empty line or Ctrl-D ends it.

	--model M       which model; default the first that is offered
	--system TEXT   instructions for the model
	--max-tokens N  the most tokens in an answer
	--url URL       base URL of the local server; default http://127.0.0.1:4117/v1
	--relay URL     go through this relay, without a local server; again for more
	--node ID       a node that you trust, with --relay; again for more
	--json          print one JSON line when the answer is complete:
	                {"model":…,"content":…,"finish_reason":…,"node":…}

Example:

	$ tokenplace chat 'What is a river?'
	River: a large natural stream of water.
	$ tokenplace chat 'Summarise this:' < notes.txt
`

// message is one turn of a conversation.
type message struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// chat is a conversation with a model.
type chat struct {
	http      *http.Client
	base      string // URL, with /v1
	model     string
	maxTokens int
	messages  []message
}

// answer is what a model said.
type answer struct {
	Model        string `json:"model"`
	Content      string `json:"content"`
	FinishReason string `json:"finish_reason"`
	Node         string `json:"node,omitempty"` // who could read it
}

func runChat(ctx context.Context, s streams, args []string) error {
	f := newFlags(s, "chat", chatUsage)
	c := &chat{http: http.DefaultClient}
	f.StringVar(&c.model, "model", "", "")
	f.IntVar(&c.maxTokens, "max-tokens", 0, "")
	system := f.String("system", "", "")
	f.StringVar(&c.base, "url", "http://"+defaultListen+"/v1", "")
	relays, nodes, aliases := f.relays(), f.ids("node"), f.aliases()
	asJSON := f.Bool("json", false, "")
	words, err := f.parse(args, true)
	if err != nil {
		return err
	}
	c.base = strings.TrimSuffix(c.base, "/")
	if len(relays.values) > 0 {
		t, err := openClient(relays.values, nodes.values, aliases)
		if err != nil {
			return err
		}
		defer t.Close()
		c.http = &http.Client{Transport: t}
	} else if err := needsRelay(nodes, aliases); err != nil {
		return err
	} else if u, err := url.Parse(c.base); err != nil || u.Scheme != "http" && u.Scheme != "https" {
		return badUsage("--url %q: want the local server's base URL, as in http://%s/v1", clip(c.base), defaultListen)
	}
	if *system != "" {
		c.messages = append(c.messages, message{"system", *system})
	}
	prompt := strings.Join(words, " ")
	person := isTerminal(s.in)
	if !person {
		piped, err := io.ReadAll(io.LimitReader(s.in, 16<<20))
		if err != nil {
			return fmt.Errorf("read standard input: %w", err)
		}
		prompt = strings.TrimSpace(prompt + "\n\n" + string(piped))
	}
	if prompt == "" && !person {
		return badUsage("there is nothing to send: give a prompt, or pipe text in")
	}
	if err := c.chooseModel(ctx); err != nil {
		return err
	}
	switch {
	case prompt == "":
		return c.converse(ctx, s)
	case *asJSON:
		a, err := c.ask(ctx, prompt, io.Discard)
		if err != nil {
			return err
		}
		return json.NewEncoder(s.out).Encode(a)
	}
	a, err := c.ask(ctx, prompt, forTerminal(s.out))
	if a.Content != "" {
		fmt.Fprintln(s.out)
	}
	if isTerminal(s.err) {
		io.WriteString(s.err, a.label()+a.cut())
	}
	return err
}

// label says who could have read the exchange.
func (a answer) label() string {
	if a.Node == "" {
		return ""
	}
	return "(node " + a.Node + " could read this; the relay could not)\n"
}

// cut says that the answer is not all that the model would have said.
func (a answer) cut() string {
	if a.FinishReason != "length" {
		return ""
	}
	return "(cut off: it has as many tokens as --max-tokens or the model allows)\n"
}

// forTerminal returns a writer to w that lets through only what is printable, if
// w is a terminal; a file or a pipe gets an answer as it is.
func forTerminal(w io.Writer) io.Writer {
	if !isTerminal(w) {
		return w
	}
	return terminal{w}
}

type terminal struct{ w io.Writer }

func (t terminal) Write(p []byte) (int, error) {
	_, err := io.WriteString(t.w, printable(string(p)))
	return len(p), err
}

// isTerminal reports whether a person is at the other end of a stream.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

// converse asks for one line after the other. What went wrong with one answer
// is said, and the conversation goes on without it. Ctrl-C stops an answer; when
// there is none, it ends the conversation.
func (c *chat) converse(ctx context.Context, s streams) error {
	fmt.Fprintf(s.err, "Talking to %s. Ctrl-C stops an answer; an empty line ends it all.\n", c.model)
	interrupts := make(chan os.Signal, 1)
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)
	ctx = context.WithoutCancel(ctx) // which the first Ctrl-C has ended
	lines := make(chan string)
	go func() { // ends with the process: a terminal's read cannot be cancelled
		defer close(lines)
		in := bufio.NewScanner(s.in)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			lines <- in.Text()
		}
	}()
	for last := ""; ; {
		fmt.Fprint(s.err, "\n> ")
		select {
		case <-interrupts:
			fmt.Fprintln(s.err)
			return nil
		case line, ok := <-lines:
			if !ok || strings.TrimSpace(line) == "" {
				fmt.Fprintln(s.err)
				return nil
			}
			a, end := c.turn(ctx, s, line, interrupts)
			if a.Node != "" && a.Node != last {
				last = a.Node
				io.WriteString(s.err, a.label())
			}
			if end {
				return nil
			}
		}
	}
}

// turn asks and shows the answer, or what went wrong. end means that the program
// was told to end meanwhile.
func (c *chat) turn(ctx context.Context, s streams, line string, interrupts <-chan os.Signal) (a answer, end bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stopped os.Signal
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case stopped = <-interrupts:
			cancel()
		case <-ctx.Done():
		}
	})
	a, err := c.ask(ctx, line, forTerminal(s.out))
	cancel()
	watch.Wait()
	fmt.Fprintln(s.out)
	switch {
	case stopped != nil:
		fmt.Fprintln(s.err, "(stopped)")
	case err != nil:
		fmt.Fprintf(s.err, "tokenplace: %s\n", printable(err.Error()))
	default:
		io.WriteString(s.err, a.cut())
	}
	return a, stopped == syscall.SIGTERM
}

// chooseModel takes the first model that is offered, unless one was named.
func (c *chat) chooseModel(ctx context.Context) error {
	if c.model != "" {
		return nil
	}
	models, err := c.models(ctx)
	if err != nil {
		return err
	}
	if len(models) == 0 {
		return errors.New("no model is offered: no pinned node is connected, or its engine has none; tokenplace models says more")
	}
	c.model = models[0].ID
	return nil
}

// maxContent bounds what is kept of an answer.
const maxContent = 16 << 20

// ask sends the conversation with prompt added and writes the answer to w while
// it comes. The turn is kept only when the answer is complete.
func (c *chat) ask(ctx context.Context, prompt string, w io.Writer) (answer, error) {
	turn := append(c.messages[:len(c.messages):len(c.messages)], message{"user", prompt})
	body, err := json.Marshal(struct {
		Model     string    `json:"model"`
		Messages  []message `json:"messages"`
		Stream    bool      `json:"stream"`
		MaxTokens int       `json:"max_tokens,omitempty"`
	}{c.model, turn, true, c.maxTokens})
	if err != nil {
		return answer{}, err
	}
	resp, err := c.do(ctx, http.MethodPost, "/chat/completions", body)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	a := answer{Model: c.model, Node: resp.Header.Get(client.NodeHeader)}
	var content strings.Builder
	for events := openai.NewEvents(resp.Body); ; {
		e, err := events.Next()
		if err != nil {
			return a, fmt.Errorf("the answer broke off: %w", err)
		}
		if e.Done() {
			break
		}
		piece, finish, err := delta(e.Data)
		if err != nil {
			return a, err
		}
		if content.Len()+len(piece) > maxContent {
			return a, fmt.Errorf("the answer is longer than %d MiB", maxContent>>20)
		}
		content.WriteString(piece)
		a.Content = content.String() // shares the builder's memory
		if finish != "" {
			a.FinishReason = finish
		}
		if _, err := io.WriteString(w, piece); err != nil {
			return a, err
		}
	}
	c.messages = append(turn, message{"assistant", a.Content})
	return a, nil
}

// delta reads one event of a streamed answer.
func delta(data []byte) (piece, finish string, err error) {
	if e, ok := openai.ReadError(bytes.NewReader(data)); ok {
		return "", "", e
	}
	var chunk struct {
		Choices []struct {
			Delta        struct{ Content string }
			FinishReason string `json:"finish_reason"`
		}
	}
	if err := json.Unmarshal(data, &chunk); err != nil {
		return "", "", fmt.Errorf("the engine sent an event that is not JSON: %w", err)
	}
	if len(chunk.Choices) == 0 {
		return "", "", nil
	}
	return chunk.Choices[0].Delta.Content, chunk.Choices[0].FinishReason, nil
}

func (c *chat) models(ctx context.Context) (openai.ModelList, error) {
	resp, err := c.do(ctx, http.MethodGet, "/models", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return openai.ReadModels(resp.Body)
}

// do sends a request and turns what is not a success into an error for a person.
func (c *chat) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, badUsage("--url: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("nothing answers at %s: start tokenplace dev or tokenplace serve, or name a relay with --relay", c.base)
	}
	if err != nil {
		// Without "Post "http://…":", which says nothing of use to who asked.
		var outer *url.Error
		if errors.As(err, &outer) {
			err = outer.Err
		}
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	if e, ok := openai.ReadError(resp.Body); ok {
		return nil, e
	}
	return nil, fmt.Errorf("%s answered %s", c.base, resp.Status)
}

// localModels asks the local server what it offers.
func localModels(ctx context.Context, base string) ([]modelLine, error) {
	c := &chat{http: http.DefaultClient, base: strings.TrimSuffix(base, "/")}
	resp, err := c.do(ctx, http.MethodGet, "/models", nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list struct{ Data []modelLine }
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4<<20)).Decode(&list); err != nil {
		return nil, fmt.Errorf("%s does not answer like an OpenAI API: %w", base, err)
	}
	if list.Data == nil {
		list.Data = []modelLine{}
	}
	return list.Data, nil
}

package canary

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"token.place/e2e/internal/stub"
	"token.place/e2e/internal/testnet"
	"token.place/identity"
)

const clientAddress = "10.77.88.99"

// trap is a network with three hosts: the relay in the middle, the client at an
// address like no other, the node with an engine that the test plays.
type trap struct {
	engine *stub.Engine
	relay  *testnet.Relay
	node   *testnet.Node
	server *testnet.Server
	ask    testnet.Question
	client *testnet.Host

	prompt, answer, key, agent, address, seed, planted Secret
}

func secret(name string) Secret { return Secret{name, []byte(name + "-" + rand.Text())} }

func newTrap(t *testing.T, env string) *trap {
	t.Helper()
	middle, left, right := testnet.NewHost(t), testnet.NewHost(t), testnet.NewHost(t)
	testnet.Connect(middle, "10.77.1.1/24", left, "10.77.1.2/24")
	testnet.Connect(middle, "10.77.88.1/24", right, clientAddress+"/24")
	x := &trap{
		client: right,
		prompt: secret("prompt"), answer: secret("answer"), key: secret("sk"), agent: secret("agent"),
		address: Secret{"client address", []byte(clientAddress)},
		planted: secret("planted"),
	}
	environment := []string{"TOKENPLACE_ENV=" + env}
	x.engine = stub.NewOn(t, left.Listener("127.0.0.1:0"), nil)
	x.relay = testnet.StartRelay(t, testnet.Command{Host: middle, Env: append(environment, "PLANTED="+string(x.planted.Raw))}, "--listen", "0.0.0.0:0")
	x.node = testnet.StartNode(t, testnet.Command{Host: left, Env: environment}, x.relay.At("10.77.1.1"), x.engine.URL)
	x.seed = Secret{"the node's private key", seedOf(t, filepath.Join(x.node.Dir, "node.pem"))}
	x.server = testnet.StartServer(t, testnet.Command{Host: right, Env: environment}, x.relay.At("10.77.88.1"), []*testnet.Node{x.node})
	x.ask = testnet.Question{
		Client: &http.Client{Transport: &http.Transport{DialContext: right.Dial}},
		Base:   x.server.BaseURL, Model: "stub", Prompt: string(x.prompt.Raw), Stream: true,
		Header: http.Header{"Authorization": {"Bearer " + string(x.key.Raw)}, "User-Agent": {string(x.agent.Raw)}},
	}
	return x
}

func seedOf(t *testing.T, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	if block == nil {
		t.Fatalf("%s is not PEM", path)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key.(ed25519.PrivateKey).Seed()
}

// secrets are what a relay must not have.
func (x *trap) secrets() []Secret {
	return []Secret{x.prompt, x.answer, x.key, x.agent, x.address, x.seed}
}

// content is what nobody may write down, the node and the client included.
func (x *trap) content() []Secret { return []Secret{x.prompt, x.answer, x.key, x.agent} }

func TestRelayHasNothing(t *testing.T) {
	for _, env := range []string{"production", "development"} {
		t.Run(env, func(t *testing.T) {
			x := newTrap(t, env)
			got, call := x.begin(t)
			x.checkMemory(t, "while the answer streams")
			x.checkAnswers(t, "while the answer streams")
			x.checkNode(t)

			call.Say(" and " + string(x.answer.Raw))
			call.End()
			if <-got.Finished; !got.Whole(true) || strings.Count(got.Text, string(x.answer.Raw)) != 2 {
				t.Fatalf("the exchange went wrong: %+v", got)
			}
			x.checkMemory(t, "after the answer")

			x.provoke(t)
			x.checkAnswers(t, "after errors")
			x.checkWritten(t)
		})
	}
}

// begin starts an exchange and returns when its prompt has reached the engine
// and part of its answer the client.
func (x *trap) begin(t *testing.T) (*testnet.Answer, *stub.Call) {
	t.Helper()
	x.await(t)
	got := x.ask.Ask(t.Context())
	call := x.engine.Next()
	if call.Prompt != string(x.prompt.Raw) {
		t.Fatalf("the engine was asked %q", call.Prompt)
	}
	for name, values := range call.Header {
		if found := Find([]byte(strings.Join(values, " ")), x.key, x.agent, x.address); len(found) > 0 {
			t.Errorf("the engine got %v in %s", found, name)
		}
	}
	call.Say(string(x.answer.Raw))
	if !got.Seen(string(x.answer.Raw)) {
		t.Fatalf("the exchange went wrong: %+v", got)
	}
	return got, call
}

// await waits until the local server knows the node.
func (x *trap) await(t *testing.T) {
	t.Helper()
	for began := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		res, err := x.ask.Client.Get(x.server.BaseURL + "/models/stub")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Since(began) > testnet.Patience {
			t.Fatal("the network did not come up")
		}
	}
}

func (x *trap) checkMemory(t *testing.T, when string) {
	t.Helper()
	found, size, err := FindMemory(x.relay.PID(), x.secrets()...)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		t.Errorf("%s the relay's memory has: %s", when, name)
	}
	t.Logf("%s: searched %d MiB of the relay's memory", when, size>>20)
	// The same search finds what was put there.
	control, _, err := FindMemory(x.relay.PID(), x.planted)
	if err != nil || len(control) == 0 {
		t.Errorf("the planted secret was not found in the relay's memory: %v", err)
	}
}

// checkNode is the control: where the exchange is opened, the same search finds
// it.
func (x *trap) checkNode(t *testing.T) {
	t.Helper()
	for _, s := range []Secret{x.prompt, x.answer, x.seed} {
		found, size, err := FindMemory(x.node.PID(), s)
		if err != nil || len(found) == 0 {
			t.Errorf("the search finds no %s in the %d MiB of the node's memory: %v", s.Name, size>>20, err)
		}
		t.Logf("in the node's memory: %v", found)
	}
}

// checkAnswers asks the relay for everything that it may tell.
func (x *trap) checkAnswers(t *testing.T, when string) {
	t.Helper()
	ids := "/v1/nodes/" + x.node.ID
	for _, path := range []string{
		"/", "/healthz", "/readyz", "/v1/nodes", "/v1/nodes?model=stub", "/v1/nodes?id=" + x.node.ID, "/v1/models", ids + "/ohttp-keys",
		"/metrics", "/debug/vars", "/debug/pprof/heap?debug=1", "/debug/pprof/goroutine?debug=2", "/status",
	} {
		if found := Find(x.send(t, http.MethodGet, path, nil, http.Header{}), x.secrets()...); len(found) > 0 {
			t.Errorf("%s GET %s tells %v", when, path, found)
		}
	}
}

// provoke makes the relay refuse requests that are full of secrets. They do
// get into its memory, which is where TLS opens what it carries, so memory is
// not searched again.
func (x *trap) provoke(t *testing.T) {
	t.Helper()
	body := []byte(fmt.Sprintf(`{"model":"stub","messages":[{"role":"user","content":"%s %s"}]}`, x.prompt.Raw, x.answer.Raw))
	for path, media := range map[string]string{
		"/v1/chat/completions":              "application/json",
		"/v1/exchange/" + x.node.ID:         "application/json",
		"/v1/exchange/" + x.relay.ID:        "message/ohttp-chunked-req",
		"/v1/exchange/" + x.node.ID + "/":   "message/ohttp-chunked-req",
		"/v1/exchange/" + x.node.ID + "?x=": "message/ohttp-chunked-req",
	} {
		header := x.ask.Header.Clone()
		header.Set("Content-Type", media)
		answer := x.send(t, http.MethodPost, path, body, header)
		if found := Find(answer, x.secrets()...); len(found) > 0 {
			t.Errorf("POST %s answers with %v: %s", path, found, answer)
		}
	}
}

// send returns the whole answer, head and body, to a request straight to the
// relay from the client's host.
func (x *trap) send(t *testing.T, method, path string, body []byte, header http.Header) []byte {
	t.Helper()
	relay, err := identity.ParseRelay(x.relay.At("10.77.88.1"))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{
		TLSClientConfig: relay.TLS("http/1.1"),
		DialContext:     x.client.Dial,
	}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), method, relay.URL.String()+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Errorf("%s %s: %v", method, path, err)
		return nil
	}
	defer res.Body.Close()
	var all bytes.Buffer
	res.Header.Write(&all)
	io.Copy(&all, res.Body)
	return all.Bytes()
}

// checkWritten looks at what the processes have written down.
func (x *trap) checkWritten(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(x.relay.Dir, "tmp", "planted"), x.planted.Raw, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		*testnet.Process
		secrets []Secret
	}{
		{x.relay.Process, x.secrets()},
		{x.node.Process, append(x.content(), x.address)},
		{x.server.Process, x.content()},
	} {
		if found := Find([]byte(p.Stdout()+p.Stderr()), p.secrets...); len(found) > 0 {
			t.Errorf("%s wrote %v:\n%s%s", p.Name, found, p.Stdout(), p.Stderr())
		}
		found, err := FindFiles(p.Dir, p.secrets...)
		if err != nil || len(found) > 0 {
			t.Errorf("files of %s: %v, %v", p.Name, found, err)
		}
	}
	if found, err := FindFiles(x.relay.Dir, x.planted); len(found) != 1 {
		t.Errorf("the planted file was not found: %v, %v", found, err)
	}
	if found, err := FindFiles(x.node.Dir, x.seed); len(found) == 0 {
		t.Errorf("the node's key was not found in its identity file: %v", err)
	}
}

package sdk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	openai "github.com/sashabaranov/go-openai"
)

// sashabaranov is github.com/sashabaranov/go-openai.
type sashabaranov struct{ client *openai.Client }

func newSashabaranov(baseURL string) chatter {
	cfg := openai.DefaultConfig("none")
	cfg.BaseURL = baseURL
	return sashabaranov{openai.NewClientWithConfig(cfg)}
}

func (c sashabaranov) models(ctx context.Context) (ids []string, err error) {
	list, err := c.client.ListModels(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range list.Models {
		ids = append(ids, m.ID)
	}
	return ids, nil
}

func request(model, prompt string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{
		Model:    model,
		Messages: []openai.ChatCompletionMessage{{Role: openai.ChatMessageRoleUser, Content: prompt}},
		// The type leaves a zero out; this is as good as zero.
		Temperature: math.SmallestNonzeroFloat32,
	}
}

func (c sashabaranov) chat(ctx context.Context, model, prompt string) (string, error) {
	res, err := c.client.CreateChatCompletion(ctx, request(model, prompt))
	if err != nil {
		return "", err
	}
	return res.Choices[0].Message.Content, nil
}

func (c sashabaranov) stream(ctx context.Context, model, prompt string, each func()) (text string, parts int, err error) {
	s, err := c.client.CreateChatCompletionStream(ctx, request(model, prompt))
	if err != nil {
		return "", 0, err
	}
	defer s.Close()
	for {
		chunk, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return text, parts, nil
		}
		if err != nil {
			return text, parts, err
		}
		for _, choice := range chunk.Choices {
			if choice.Delta.Content != "" {
				text += choice.Delta.Content
				parts++
				each()
			}
		}
	}
}

func (c sashabaranov) tool(ctx context.Context, model, prompt string) (name, arguments string, err error) {
	req := request(model, prompt)
	req.Tools = []openai.Tool{{Type: openai.ToolTypeFunction, Function: &openai.FunctionDefinition{
		Name:        "get_weather",
		Description: "Get the weather in a city.",
		Parameters: map[string]any{
			"type":       "object",
			"properties": map[string]any{"city": map[string]any{"type": "string"}},
			"required":   []string{"city"},
		},
	}}}
	res, err := c.client.CreateChatCompletion(ctx, req)
	if err != nil {
		return "", "", err
	}
	calls := res.Choices[0].Message.ToolCalls
	if len(calls) != 1 {
		return "", "", errors.New("no tool was called: " + res.Choices[0].Message.Content)
	}
	return calls[0].Function.Name, calls[0].Function.Arguments, nil
}

func (c sashabaranov) refused(err error) (status int, code, message string, ok bool) {
	var e *openai.APIError
	if !errors.As(err, &e) {
		return 0, "", "", false
	}
	return e.HTTPStatusCode, fmt.Sprint(e.Code), e.Message, true
}

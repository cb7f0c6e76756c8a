package sdk

import (
	"context"
	"errors"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/shared"
)

// official is github.com/openai/openai-go.
type official struct{ client openai.Client }

func newOfficial(baseURL string) chatter {
	return official{openai.NewClient(option.WithBaseURL(baseURL), option.WithAPIKey("none"), option.WithMaxRetries(0))}
}

func (c official) models(ctx context.Context) (ids []string, err error) {
	page, err := c.client.Models.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range page.Data {
		ids = append(ids, m.ID)
	}
	return ids, nil
}

func params(model, prompt string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:       model,
		Messages:    []openai.ChatCompletionMessageParamUnion{openai.UserMessage(prompt)},
		Temperature: openai.Float(0),
	}
}

func (c official) chat(ctx context.Context, model, prompt string) (string, error) {
	res, err := c.client.Chat.Completions.New(ctx, params(model, prompt))
	if err != nil {
		return "", err
	}
	return res.Choices[0].Message.Content, nil
}

func (c official) stream(ctx context.Context, model, prompt string, each func()) (text string, parts int, err error) {
	s := c.client.Chat.Completions.NewStreaming(ctx, params(model, prompt))
	defer s.Close()
	for s.Next() {
		for _, choice := range s.Current().Choices {
			if choice.Delta.Content != "" {
				text += choice.Delta.Content
				parts++
				each()
			}
		}
	}
	return text, parts, s.Err()
}

func (c official) tool(ctx context.Context, model, prompt string) (name, arguments string, err error) {
	p := params(model, prompt)
	p.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(shared.FunctionDefinitionParam{
		Name:        "get_weather",
		Description: openai.String("Get the weather in a city."),
		Parameters: shared.FunctionParameters{
			"type":       "object",
			"properties": map[string]any{"city": map[string]any{"type": "string"}},
			"required":   []string{"city"},
		},
	})}
	s := c.client.Chat.Completions.NewStreaming(ctx, p)
	defer s.Close()
	var all openai.ChatCompletionAccumulator
	for s.Next() {
		all.AddChunk(s.Current())
	}
	if s.Err() != nil {
		return "", "", s.Err()
	}
	calls := all.Choices[0].Message.ToolCalls
	if len(calls) != 1 {
		return "", "", errors.New("no tool was called: " + all.Choices[0].Message.Content)
	}
	return calls[0].Function.Name, calls[0].Function.Arguments, nil
}

func (c official) refused(err error) (status int, code, message string, ok bool) {
	var e *openai.Error
	if !errors.As(err, &e) {
		return 0, "", "", false
	}
	return e.StatusCode, e.Code, e.Message, true
}

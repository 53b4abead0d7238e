// Stylize a JPEG or PNG image, and write a PNG, with Go's standard library.
//
//	go run stylize.go photo.jpg stylized.png http://127.0.0.1:8000 starry-night-fast
//	go run stylize.go photo.jpg stylized.png http://127.0.0.1:8000 gallery 0.7 0.3    # weights of the model's two styles
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	_ "image/jpeg"
	"image/png"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

type object map[string]any

// stylize returns the stylized image's RGB bytes for an image's, rows from the top.
func stylize(url, model string, pixels []byte, width, height int, weights []float64) ([]byte, error) {
	inputs := []object{{
		"name": "image", "datatype": "UINT8", "shape": []int{1, height, width, 3},
		"parameters": object{"binary_data_size": len(pixels)},
	}}
	if len(weights) > 0 {
		inputs = append(inputs, object{
			"name": "style_weights", "datatype": "FP32", "shape": []int{1, len(weights)}, "data": weights,
		})
	}
	outputs := []object{{"name": "stylized", "parameters": object{"binary_data": true}}}
	header, err := json.Marshal(object{"inputs": inputs, "outputs": outputs})
	if err != nil {
		return nil, err
	}
	body := append(header, pixels...)
	request, err := http.NewRequest("POST", url+"/v2/models/"+model+"/infer", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/octet-stream")
	request.Header.Set("Inference-Header-Content-Length", strconv.Itoa(len(header)))
	if token := os.Getenv("NST_TOKEN"); token != "" {
		request.Header.Set("nst-token", token)
	}
	client := http.Client{Timeout: time.Minute}
	answer, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	if body, err = io.ReadAll(answer.Body); err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s", answer.Status, body)
	}
	start, err := strconv.Atoi(answer.Header.Get("Inference-Header-Content-Length"))
	if err != nil || len(body)-start != len(pixels) {
		return nil, fmt.Errorf("the answer is no image of %dx%d", width, height)
	}
	return body[start:], nil
}

func run(source, target, url, model string, styleWeights []string) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer file.Close()
	content, _, err := image.Decode(file)
	if err != nil {
		return fmt.Errorf("%s: %w", source, err)
	}
	var weights []float64
	for _, text := range styleWeights {
		weight, err := strconv.ParseFloat(text, 32)
		if err != nil {
			return err
		}
		weights = append(weights, weight)
	}
	bounds := content.Bounds()
	width, height := bounds.Dx(), bounds.Dy()
	pixels := make([]byte, 0, width*height*3)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			r, g, b, _ := content.At(x, y).RGBA() // 16 bits each
			pixels = append(pixels, byte(r>>8), byte(g>>8), byte(b>>8))
		}
	}
	stylized, err := stylize(url, model, pixels, width, height, weights)
	if err != nil {
		return err
	}
	result := image.NewNRGBA(image.Rect(0, 0, width, height))
	for i := 0; i < width*height; i++ {
		rgb := stylized[3*i : 3*i+3]
		result.SetNRGBA(i%width, i/width, color.NRGBA{R: rgb[0], G: rgb[1], B: rgb[2], A: 255})
	}
	output, err := os.Create(target)
	if err != nil {
		return err
	}
	if err := png.Encode(output, result); err != nil {
		return err
	}
	return output.Close()
}

func main() {
	if len(os.Args) < 5 {
		fmt.Fprintln(os.Stderr, "usage: stylize photo.jpg stylized.png http://127.0.0.1:8000 MODEL [WEIGHT...]")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

"""The smallest program: needs `LEPTON_API_KEY=your_api_key lepton up` and a data.csv with the columns feature and target."""

import pandas as pd

import leptonai as la

client = la.Client("your_api_key")
data = pd.read_csv("data.csv")
model = la.LinearRegression()
model.fit(data["feature"], data["target"])
predictions = model.predict(data["feature"])
mse = la.mean_squared_error(data["target"], predictions)
print(f"Mean Squared Error: {mse}")
